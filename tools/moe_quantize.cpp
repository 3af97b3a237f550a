// A model's experts in few bits.
#include <moe/io/checkpoint.hpp>
#include <moe/io/compare_models.hpp>
#include <moe/io/importance_matrix.hpp>
#include <moe/io/ordered_json.hpp>
#include <moe/io/quantize_gguf.hpp>
#include <moe/io/quantize_model.hpp>
#include <moe/runtime/executors/openmp.hpp>

#include <charconv>
#include <cstddef>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#if __has_include(<unistd.h>)
#include <unistd.h>
#endif

namespace {

constexpr const char* usage =
    "moe_quantize IN OUT --type TYPE [--type-of PART=TYPE]… [--keep PART]… [--imatrix FILE] [--all-linears]\n"
    "             [--inputs FILE] [--tokens N] [--overwrite] [--json]\n"
    "  OUT is a folder: writes the model of folder IN (config.json beside *.safetensors, F32, BF16 or F16) to it, its\n"
    "  experts in TYPE and all other tensors as they are.\n"
    "  OUT ends in .gguf: writes the MoE blocks of IN (such a folder, in 8 or 4 bits as well, or a .gguf file) to it,\n"
    "  experts in TYPE, routers and the like in F32; no attention, embeddings or tokenizer.\n"
    "  --type TYPE     of a folder: fp8 (128 x 128 blocks, as transformers), int4_g32, int4_g128, mxfp4, nvfp4 (as\n"
    "                  compressed-tensors); of a .gguf: q8_0, q4_0, q4_1, q5_0, q5_1, q2_k, q3_k, q4_k, q5_k, q6_k,\n"
    "                  iq4_nl, mxfp4, nvfp4, tq1_0, tq2_0, f16, bf16, f32 (as llama.cpp), and its mixtures\n"
    "                  q4_k_m and q5_k_m: ffn_down in q6_k in some layers\n"
    "  --type-of PART=TYPE  of a .gguf: tensors with PART in their name (ffn_down_exps, blk.0.) in another type\n"
    "  --imatrix FILE  of a .gguf: llama-imatrix's recording of a model (in its GGUF form): what matters errs less\n"
    "                  (q8_0, mxfp4, nvfp4, tq1_0, tq2_0, f16, bf16, f32 look at none)\n"
    "  --all-linears   attention and dense FFNs as well; never embeddings, the head, norms, routers; of a folder\n"
    "  --keep PART     modules (of a .gguf: tensors, as ffn_down_exps) with PART in their name stay as they are\n"
    "  --inputs FILE   what blocks read, to compare their answers: a .safetensors of tensors that are called as IN's\n"
    "                  blocks, model.layers.3.mlp.input (tokens x d_model); without it, random tokens\n"
    "  --tokens N      how many random ones (64); 0: nothing is compared\n"
    "  --overwrite     OUT may be a model's folder, which is replaced with all that is in it, or a .gguf file\n"
    "  --json          the report as JSON: every matrix and every block with its error\n"
    "  --help          this\n"
    "What is written is loaded and compared before it appears: what could not be used is not OUT, but OUT.refused.\n"
    "Exit code: 0; 2 if OUT was not written, or the report could not be.\n";

int complain(const std::string& what) {
  std::fprintf(stderr, "moe_quantize: %s\n", what.c_str());
  return 2;
}

bool is_terminal() {
#if __has_include(<unistd.h>)
  return ::isatty(2) == 1;
#else
  return false;
#endif
}

/// On a terminal one line that changes; elsewhere a line for each tenth.
class ProgressLine {
 public:
  explicit ProgressLine(std::string doing) : doing_(std::move(doing)) {}

  /// @param what  comes next; empty at the end
  void operator()(std::size_t done, std::size_t of, const std::string& what) {
    const std::size_t percent = of == 0 ? 100 : done * 100 / of;
    if (terminal_) {
      std::fprintf(stderr, "\r%s: %3zu %%  %-60.60s", doing_.c_str(), percent, what.c_str());
      if (what.empty()) std::fprintf(stderr, "\r%-79s\r", "");
    } else if (percent / 10 != shown_) {
      shown_ = percent / 10;
      std::fprintf(stderr, "moe_quantize: %s: %zu %%\n", doing_.c_str(), percent);
    }
  }

 private:
  std::string doing_;
  bool terminal_ = is_terminal();
  std::size_t shown_ = 0;
};

bool is_gguf(const std::string& out) { return std::filesystem::path(out).extension() == ".gguf"; }

/// Is a word in a list of them, "fp8, int4_g32, …"?
bool is_among(const std::string& word, const std::string& list) {
  return (", " + list + ", ").find(", " + word + ", ") != std::string::npos;
}

/// Why there cannot be weights of this type there; empty if there can.
std::string wrong_type(const std::string& type, bool of_gguf) {
  const std::string of_folders = moe::io::quantized_folder_types(), of_files = moe::io::quantized_gguf_types();
  const std::string& expected = of_gguf ? of_files : of_folders;
  if (type.empty()) return "no --type, expected one of " + expected;
  if (of_gguf && is_among(type, of_folders) && !is_among(type, of_files)) {
    return "type \"" + type + "\" is of folders, and OUT is a GGUF file: expected one of " + expected;
  }
  if (!of_gguf && is_among(type, of_files) && !is_among(type, of_folders)) {
    return "type \"" + type + "\" is of GGUF files, and OUT is a folder: expected one of " + expected +
           "; or an OUT that ends in .gguf";
  }
  return {};
}

std::string name_of(const moe::io::MatrixQuantization& matrix) {
  return matrix.tensor + (matrix.expert < 0 ? "" : ", expert " + std::to_string(matrix.expert));
}

/// What the written model's blocks answer.
using Comparison = std::vector<moe::io::BlockChange>;

moe::io::OrderedJson json_of(const moe::io::ModelQuantization& done, const Comparison& comparison, double mean,
                             const std::string& out, const std::string& type) {
  using moe::io::OrderedJson;
  OrderedJson all = {{is_gguf(out) ? "file" : "folder", out},
                     {"type", type},
                     {"bytes_before", done.bytes_before},
                     {"bytes_after", done.bytes_after},
                     {"mean_error", mean},
                     {"quantized", OrderedJson::array()},
                     {"kept", OrderedJson::array()},
                     {"not_in_imatrix", done.unweighed},
                     {"types_without_imatrix", done.unweighing},
                     {"blocks", OrderedJson::array()}};
  for (const auto& matrix : done.matrices) {
    OrderedJson entry = {{"tensor", matrix.tensor}};
    if (matrix.expert >= 0) entry["expert"] = matrix.expert;
    entry["type"] = matrix.type;
    entry["shape"] = matrix.shape;
    entry["error"] = matrix.error;
    all["quantized"].push_back(std::move(entry));
  }
  for (const auto& [name, reason] : done.kept) all["kept"].push_back({{"tensor", name}, {"reason", reason}});
  for (const auto& block : comparison) {
    if (!block.why_not.empty()) {
      all["blocks"].push_back({{"block", block.other}, {"not_compared", block.why_not}});
      continue;
    }
    if (block.tokens == 0) continue;
    all["blocks"].push_back({{"block", block.other},
                             {"tokens", block.tokens},
                             {"recorded", block.recorded},
                             {"answer_error", block.answers.relative},
                             {"answer_error_of_worst_token", block.answers.worst_token},
                             {"choices", block.choices.routes},
                             {"changed_choices", block.choices.changed_routes},
                             {"tokens_of_changed_choices", block.choices.changed_tokens}});
  }
  return all;
}

/// "blk.3: weights are off by 0.05 (0.06 at worst: ffn_down_exps, expert 7), answers by 0.06 (0.09 at the worst …".
std::string line_of(const moe::io::BlockChange& block, const moe::io::ModelQuantization& done) {
  double sum = 0, count = 0;
  const moe::io::MatrixQuantization* worst = nullptr;
  for (const auto& matrix : done.matrices) {
    if (!matrix.tensor.starts_with(block.other + '.')) continue;
    sum += matrix.error;
    ++count;
    if (worst == nullptr || matrix.error > worst->error) worst = &matrix;
  }
  char text[400];
  std::string line = "  " + block.other + ": ";
  if (worst != nullptr) {
    std::snprintf(text, sizeof text, "weights are off by %.2g (%.2g at worst: %s), ", sum / count, worst->error,
                  name_of(*worst).substr(block.other.size() + 1).c_str());
    line += text;
  }
  if (!block.why_not.empty()) return line + "answers are not compared: " + block.why_not + "\n";
  if (block.tokens == 0) return {};
  std::snprintf(text, sizeof text, "answers by %.2g (%.2g at the worst of %td %stokens), %td of %td choices change\n",
                block.answers.relative, block.answers.worst_token, block.tokens, block.recorded ? "given " : "",
                block.choices.changed_routes, block.choices.routes);
  return line + text;
}

std::string report_of(const moe::io::ModelQuantization& done, const Comparison& comparison, const std::string& out,
                      const std::string& type, bool json) {
  double sum = 0, worst = 0;
  std::string worst_name;
  for (const auto& matrix : done.matrices) {
    sum += matrix.error;
    if (matrix.error >= worst) worst = matrix.error, worst_name = name_of(matrix);
  }
  const double mean = done.matrices.empty() ? 0 : sum / double(done.matrices.size());
  if (json) return json_of(done, comparison, mean, out, type).dump(2) + "\n";
  char text[500];
  std::snprintf(
      text, sizeof text,
      "%zu matrices in %s: %.3f GB, of %.3f; weights are off by %.3g of their norm on average, by %.3g at worst\n",
      done.matrices.size(), type.c_str(), double(done.bytes_after) * 1e-9, double(done.bytes_before) * 1e-9, mean,
      worst);
  std::string report = text + ("  worst: " + worst_name + "\n");
  for (const auto& [name, reason] : done.kept) report += "  stays: " + name + ": " + reason + "\n";
  for (const auto& name : done.unweighed) report += "  not in the imatrix: " + name + "\n";
  for (const auto& its : done.unweighing) {
    report += "  the imatrix changes nothing in " + its + ", which looks at none\n";
  }
  for (const auto& block : comparison) report += line_of(block, done);
  return report;
}

/// All that was asked for.
struct Command {
  std::string in, out;
  moe::io::QuantizeModelOptions folder;
  moe::io::QuantizeGgufOptions gguf;
  moe::io::CompareOptions compare;
  bool json = false;
};

moe::io::ModelQuantization quantize(const Command& command) {
  return is_gguf(command.out) ? moe::io::quantize_gguf(command.in, command.out, command.gguf, moe::OpenMp())
                              : moe::io::quantize_model(command.in, command.out, command.folder, moe::OpenMp());
}

/// @throws moe::io::Error that speaks of OUT, if what was written cannot be used as IN can.
Comparison compare(const Command& command, const std::filesystem::path& written) try {
  return moe::io::compare_models(command.in, written, command.compare, moe::OpenMp());
} catch (const moe::io::Error& error) {
  std::string what = error.what();
  const std::string its = written.string();
  for (std::size_t at = 0; (at = what.find(its, at)) != what.npos; at += command.out.size()) {
    what.replace(at, its.size(), command.out);
  }
  throw moe::io::Error("what was written cannot be used: " + what);
}

/// A whole number; nothing if it is none.
std::optional<moe::Index> count_of(std::string_view text) {
  moe::Index count = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), count);
  if (error != std::errc() || end != text.data() + text.size() || count < 0) return std::nullopt;
  return count;
}

}  // namespace

int main(int argc, char** argv) try {
  Command command;
  std::vector<std::string> folders;
  std::string type, imatrix, inputs;
  bool all_linears = false, overwrite = false, ended = false;
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    const auto value = [&]() -> std::string { return i + 1 < argc ? argv[++i] : ""; };
    if (ended || !argument.starts_with('-')) {
      if (argument.empty()) return complain("a folder's name is empty; see --help");
      folders.push_back(argument);
    } else if (argument == "--") {
      ended = true;
    } else if (argument == "--help" || argument == "-h") {
      return std::fputs(usage, stdout) < 0 ? 2 : 0;
    } else if (argument == "--type") {
      type = value();
      if (type.empty())
        return complain("--type is the last word, expected one of " + moe::io::quantized_folder_types() +
                        " behind it; of a .gguf one of " + moe::io::quantized_gguf_types());
    } else if (argument == "--type-of") {
      const std::string both = value();
      const std::size_t sign = both.find('=');
      if (sign == 0 || sign == both.npos || sign + 1 == both.size())
        return complain("--type-of is followed by \"" + both + "\", expected PART=TYPE, as ffn_down_exps=q6_k");
      command.gguf.type_of.push_back({both.substr(0, sign), both.substr(sign + 1)});
    } else if (argument == "--keep") {
      const std::string part = value();
      if (part.empty()) return complain("--keep is followed by nothing, expected part of a module's name");
      command.folder.keep.push_back(part);
    } else if (argument == "--imatrix" || argument == "--inputs") {
      const std::string file = value();
      if (file.empty()) return complain(argument + " is followed by nothing, expected a file");
      (argument == "--imatrix" ? imatrix : inputs) = file;
    } else if (argument == "--tokens") {
      const std::string text = value();
      const auto count = count_of(text);
      if (!count) return complain("--tokens is followed by \"" + text + "\", expected a number of tokens, or 0");
      command.compare.num_tokens = *count;
    } else if (argument == "--all-linears") {
      all_linears = true;
    } else if (argument == "--overwrite") {
      overwrite = true;
    } else if (argument == "--json") {
      command.json = true;
    } else {
      return complain("no option is called \"" + argument +
                      "\", expected --type, --type-of, --keep, --imatrix, --all-linears, --inputs, --tokens, " +
                      "--overwrite, --json or --help");
    }
  }
  if (folders.size() != 2) {
    return complain("got " + std::to_string(folders.size()) + " folders, expected IN and OUT; see --help");
  }
  command.in = folders[0];
  command.out = folders[1];
  const bool to_gguf = is_gguf(command.out);
  if (const std::string wrong = wrong_type(type, to_gguf); !wrong.empty()) return complain(wrong);
  if (to_gguf && all_linears) {
    return complain("--all-linears is of folders, and OUT is a GGUF file, which gets the MoE blocks alone");
  }
  if (!to_gguf && (!imatrix.empty() || !command.gguf.type_of.empty())) {
    return complain(std::string(imatrix.empty() ? "--type-of" : "--imatrix") +
                    " is of GGUF files, and OUT is a folder: expected an OUT that ends in .gguf");
  }
  if (!to_gguf && std::filesystem::is_regular_file(command.in)) {
    return complain("IN is a file, and OUT is a folder: expected an OUT that ends in .gguf");
  }
  if (!imatrix.empty()) command.gguf.importance = moe::io::ImportanceMatrix::open(imatrix);
  if (!inputs.empty()) command.compare.recorded = moe::io::Tensors::open(inputs);
  ProgressLine writing("writing"), comparing("comparing");
  command.folder.progress = [&](const moe::io::QuantizeProgress& now) {
    writing(now.bytes, now.of_bytes, std::string(now.tensor));
  };
  command.folder.type = command.gguf.type = type;
  command.folder.all_linears = all_linears;
  command.gguf.keep = command.folder.keep;
  command.folder.overwrite = command.gguf.overwrite = overwrite;
  command.gguf.progress = command.folder.progress;
  command.compare.progress = comparing;
  if (command.compare.recorded) moe::io::check_recorded(command.in, *command.compare.recorded);
  Comparison comparison;
  command.folder.check = [&](const std::filesystem::path& written) {
    comparison = compare(command, written);
    comparing(1, 1, "");
  };
  command.gguf.check = command.folder.check;
  const moe::io::ModelQuantization done = quantize(command);
  const std::string report = report_of(done, comparison, command.out, type, command.json);
  if (std::fputs(report.c_str(), stdout) < 0 || std::fflush(stdout) != 0) {
    return complain("standard output cannot be written");
  }
  return 0;
} catch (const std::exception& error) {
  return complain(error.what());
}
