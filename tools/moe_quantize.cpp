// A model's experts in few bits.
#include <moe/io/quantize_gguf.hpp>
#include <moe/io/quantize_model.hpp>
#include <moe/runtime/executors/openmp.hpp>

#include <cstdio>
#include <exception>
#include <filesystem>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#if __has_include(<unistd.h>)
#include <unistd.h>
#endif

#include <nlohmann/json.hpp>

namespace {

constexpr const char* usage =
    "moe_quantize IN OUT --type TYPE [--all-linears] [--keep PART]… [--overwrite] [--json]\n"
    "  OUT is a folder: writes the model of folder IN (config.json beside *.safetensors, F32, BF16 or F16) to it, its\n"
    "  experts in TYPE and all other tensors as they are.\n"
    "  OUT ends in .gguf: writes the MoE blocks of IN (such a folder, in 8 or 4 bits as well, or a .gguf file) to it,\n"
    "  experts in TYPE, routers and the like in F32; no attention, embeddings or tokenizer.\n"
    "  --type TYPE     of a folder: fp8 (128 x 128 blocks, as transformers), int4_g32, int4_g128, mxfp4, nvfp4 (as\n"
    "                  compressed-tensors); of a .gguf: q8_0, q4_0, q4_1, q5_0, q5_1, q2_k, q3_k, q4_k, q5_k, q6_k,\n"
    "                  iq4_nl, mxfp4, nvfp4, tq1_0, tq2_0, f16, bf16, f32 (as llama.cpp)\n"
    "  --all-linears   attention and dense FFNs as well; never embeddings, the head, norms, routers; of a folder\n"
    "  --keep PART     modules (of a .gguf: tensors, as ffn_down_exps) with PART in their name stay as they are\n"
    "  --overwrite     OUT may be a model's folder, which is replaced with all that is in it, or a .gguf file\n"
    "  --json          a report on standard output: every matrix with its error\n"
    "  --help          this\n"
    "Exit code: 0; 2 if nothing was written.\n";

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
  void operator()(const moe::io::QuantizeProgress& now) {
    const std::size_t percent = now.of_bytes == 0 ? 100 : now.bytes * 100 / now.of_bytes;
    if (terminal_) {
      std::fprintf(stderr, "\r%3zu %%  %-70.70s", percent, std::string(now.tensor).c_str());
      if (now.tensor.empty()) std::fprintf(stderr, "\r%-77s\r", "");
    } else if (percent / 10 != shown_) {
      shown_ = percent / 10;
      std::fprintf(stderr, "moe_quantize: %zu %%\n", percent);
    }
  }

 private:
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

std::string report_of(const moe::io::ModelQuantization& done, const std::string& out, const std::string& type,
                      bool json) {
  double sum = 0, worst = 0;
  std::string worst_name;
  for (const auto& matrix : done.matrices) {
    sum += matrix.error;
    if (matrix.error >= worst) worst = matrix.error, worst_name = name_of(matrix);
  }
  const double mean = done.matrices.empty() ? 0 : sum / double(done.matrices.size());
  if (json) {
    nlohmann::ordered_json all = {
        {is_gguf(out) ? "file" : "folder", out},  {"type", type},       {"bytes_before", done.bytes_before},
        {"bytes_after", done.bytes_after},        {"mean_error", mean}, {"quantized", nlohmann::ordered_json::array()},
        {"kept", nlohmann::ordered_json::array()}};
    for (const auto& matrix : done.matrices) {
      nlohmann::ordered_json entry = {{"tensor", matrix.tensor}};
      if (matrix.expert >= 0) entry["expert"] = matrix.expert;
      entry["shape"] = matrix.shape;
      entry["error"] = matrix.error;
      all["quantized"].push_back(std::move(entry));
    }
    for (const auto& [name, reason] : done.kept) all["kept"].push_back({{"tensor", name}, {"reason", reason}});
    return all.dump(2) + "\n";
  }
  char text[500];
  std::snprintf(
      text, sizeof text,
      "%zu matrices in %s: %.3f GB, of %.3f; weights are off by %.3g of their norm on average, by %.3g at worst\n",
      done.matrices.size(), type.c_str(), double(done.bytes_after) * 1e-9, double(done.bytes_before) * 1e-9, mean,
      worst);
  std::string report = text + ("  worst: " + worst_name + "\n");
  for (const auto& [name, reason] : done.kept) report += "  stays: " + name + ": " + reason + "\n";
  return report;
}

moe::io::ModelQuantization quantize(const std::string& in, const std::string& out,
                                    const moe::io::QuantizeModelOptions& options) {
  if (!is_gguf(out)) return moe::io::quantize_model(in, out, options, moe::OpenMp());
  return moe::io::quantize_gguf(in, out, {options.type, options.keep, options.overwrite, options.progress},
                                moe::OpenMp());
}

}  // namespace

int main(int argc, char** argv) try {
  std::vector<std::string> folders;
  moe::io::QuantizeModelOptions options;
  options.type.clear();
  bool json = false, ended = false;
  for (int i = 1; i < argc; ++i) {
    const std::string_view argument = argv[i];
    const auto value = [&]() -> const char* { return i + 1 < argc ? argv[++i] : nullptr; };
    if (ended || !argument.starts_with('-')) {
      if (argument.empty()) return complain("a folder's name is empty; see --help");
      folders.emplace_back(argument);
    } else if (argument == "--") {
      ended = true;
    } else if (argument == "--help" || argument == "-h") {
      return std::fputs(usage, stdout) < 0 ? 2 : 0;
    } else if (argument == "--type") {
      const char* const type = value();
      if (type == nullptr)
        return complain("--type is the last word, expected one of " + moe::io::quantized_folder_types() +
                        " behind it; of a .gguf one of " + moe::io::quantized_gguf_types());
      options.type = type;
    } else if (argument == "--keep") {
      const char* const part = value();
      if (part == nullptr || *part == '\0')
        return complain("--keep is followed by nothing, expected part of a module's name");
      options.keep.emplace_back(part);
    } else if (argument == "--all-linears") {
      options.all_linears = true;
    } else if (argument == "--overwrite") {
      options.overwrite = true;
    } else if (argument == "--json") {
      json = true;
    } else {
      return complain("no option is called \"" + std::string(argument) +
                      "\", expected --type, --all-linears, --keep, --overwrite, --json or --help");
    }
  }
  if (folders.size() != 2) {
    return complain("got " + std::to_string(folders.size()) + " folders, expected IN and OUT; see --help");
  }
  const std::string& in = folders[0];
  const std::string& out = folders[1];
  if (const std::string wrong = wrong_type(options.type, is_gguf(out)); !wrong.empty()) return complain(wrong);
  if (is_gguf(out) && options.all_linears) {
    return complain("--all-linears is of folders, and OUT is a GGUF file, which gets the MoE blocks alone");
  }
  if (!is_gguf(out) && is_gguf(in)) {
    return complain("IN is a GGUF file, and OUT is a folder: expected an OUT that ends in .gguf");
  }
  ProgressLine progress;
  options.progress = [&](const moe::io::QuantizeProgress& now) { progress(now); };
  const std::string report = report_of(quantize(in, out, options), out, options.type, json);
  if (std::fputs(report.c_str(), stdout) < 0 || std::fflush(stdout) != 0) {
    return complain("standard output cannot be written");
  }
  return 0;
} catch (const std::exception& error) {
  return complain(error.what());
}
