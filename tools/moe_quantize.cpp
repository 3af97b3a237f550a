// A model's experts in 8 or 4 bits.
#include <moe/io/quantize_model.hpp>
#include <moe/runtime/executors/openmp.hpp>

#include <cstdio>
#include <exception>
#include <string>
#include <string_view>
#include <vector>

#if __has_include(<unistd.h>)
#include <unistd.h>
#endif

#include <nlohmann/json.hpp>

namespace {

constexpr const char* usage =
    "moe_quantize IN OUT --type TYPE [--all-linears] [--keep PART]… [--overwrite] [--json]\n"
    "  Writes the model of folder IN (config.json beside *.safetensors, F32, BF16 or F16) to OUT, its experts in TYPE "
    "and\n"
    "  all other tensors as they are.\n"
    "  --type TYPE     fp8 (128 x 128 blocks, as transformers), int4_g32, int4_g128, mxfp4, nvfp4 (as "
    "compressed-tensors)\n"
    "  --all-linears   attention and dense FFNs as well; never embeddings, the head, norms, routers\n"
    "  --keep PART     modules with PART in their name stay as they are\n"
    "  --overwrite     OUT may be a model's folder, which is replaced with all that is in it\n"
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

std::string report_of(const moe::io::ModelQuantization& done, const std::string& out, const std::string& type,
                      bool json) {
  double sum = 0, worst = 0;
  std::string worst_name;
  for (const auto& tensor : done.tensors) {
    sum += tensor.error;
    if (tensor.error >= worst) worst = tensor.error, worst_name = tensor.name;
  }
  const double mean = done.tensors.empty() ? 0 : sum / double(done.tensors.size());
  if (json) {
    nlohmann::ordered_json all = {{"folder", out},
                                  {"type", type},
                                  {"bytes_before", done.bytes_before},
                                  {"bytes_after", done.bytes_after},
                                  {"mean_error", mean},
                                  {"quantized", nlohmann::ordered_json::array()},
                                  {"kept", nlohmann::ordered_json::array()}};
    for (const auto& tensor : done.tensors) {
      all["quantized"].push_back({{"tensor", tensor.name}, {"shape", tensor.shape}, {"error", tensor.error}});
    }
    for (const auto& [name, reason] : done.kept) all["kept"].push_back({{"tensor", name}, {"reason", reason}});
    return all.dump(2) + "\n";
  }
  char text[500];
  std::snprintf(
      text, sizeof text,
      "%zu matrices in %s: %.3f GB, of %.3f; weights are off by %.3g of their norm on average, by %.3g at worst\n",
      done.tensors.size(), type.c_str(), double(done.bytes_after) * 1e-9, double(done.bytes_before) * 1e-9, mean,
      worst);
  std::string report = text + ("  worst: " + worst_name + "\n");
  for (const auto& [name, reason] : done.kept) report += "  stays: " + name + ": " + reason + "\n";
  return report;
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
        return complain("--type is the last word, expected one of " + moe::io::quantized_folder_types());
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
  if (options.type.empty()) return complain("no --type, expected one of " + moe::io::quantized_folder_types());
  ProgressLine progress;
  options.progress = [&](const moe::io::QuantizeProgress& now) { progress(now); };
  const auto done = moe::io::quantize_model(folders[0], folders[1], options, moe::OpenMp());
  const std::string report = report_of(done, folders[1], options.type, json);
  if (std::fputs(report.c_str(), stdout) < 0 || std::fflush(stdout) != 0) {
    return complain("standard output cannot be written");
  }
  return 0;
} catch (const std::exception& error) {
  return complain(error.what());
}
