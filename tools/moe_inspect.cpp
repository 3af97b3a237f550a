// What a model's folder holds, and which of it would not load.
#include <moe/io/architectures.hpp>
#include <moe/io/inspect.hpp>
#include <moe/io/inspection_text.hpp>

#include <cstdio>
#include <exception>
#include <string>
#include <string_view>

namespace {

constexpr const char* usage =
    "moe_inspect [--json] [--hub-code] FOLDER\n"
    "moe_inspect --types\n"
    "  What a model's folder (config.json beside *.safetensors) holds: its MoE layers and dense FFNs, routers and "
    "their\n"
    "  settings, experts, formats, parameters; keys and tensors that nobody reads; what would be refused, and why.\n"
    "  --json      the same for programs, every block by itself\n"
    "  --hub-code  where transformers and the code beside the weights disagree, as the latter: ReadOptions::hub_code\n"
    "  --types     the model_types whose layers load, one a line\n"
    "  --help      this\n"
    "Exit code: 0; 1 if something would be refused; 2 for wrong usage, or a folder that cannot be read.\n";

int complain(const std::string& what) {
  std::fprintf(stderr, "moe_inspect: %s\n", what.c_str());
  return 2;
}

}  // namespace

int main(int argc, char** argv) try {
  std::string folder;
  bool json = false, ended = false;
  moe::io::ReadOptions options;
  for (int i = 1; i < argc; ++i) {
    const std::string_view argument = argv[i];
    if (ended || !argument.starts_with('-')) {
      if (argument.empty()) return complain("FOLDER is empty, expected a model's folder; see --help");
      if (!folder.empty()) {
        return complain("got \"" + folder + "\" and \"" + std::string(argument) +
                        "\", expected one folder; see --help");
      }
      folder = argument;
    } else if (argument == "--") {
      ended = true;
    } else if (argument == "--help" || argument == "-h") {
      return std::fputs(usage, stdout) < 0 ? 2 : 0;
    } else if (argument == "--types") {
      for (const std::string& type : moe::io::model_types()) std::puts(type.c_str());
      return std::fflush(stdout) != 0 ? 2 : 0;
    } else if (argument == "--json") {
      json = true;
    } else if (argument == "--hub-code") {
      options.hub_code = true;
    } else {
      return complain("no option is called \"" + std::string(argument) +
                      "\", expected --json, --hub-code, --types or --help");
    }
  }
  if (folder.empty()) return complain("expected a model's folder, with config.json beside *.safetensors; see --help");
  const moe::io::Inspection found = moe::io::inspect_folder(folder, options);
  const std::string text = json ? to_json(found).dump(2) + "\n" : to_table(found);
  if (std::fputs(text.c_str(), stdout) < 0 || std::fflush(stdout) != 0)
    return complain("standard output cannot be written");
  return found.refuses() ? 1 : 0;
} catch (const std::exception& error) {
  return complain(error.what());
}
