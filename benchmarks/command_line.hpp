/// @file  What moe_compare can be told.
#pragma once

#include <optional>
#include <string>

#include <CLI/CLI.hpp>

#include "compare.hpp"
#include "moe/core/types.hpp"
#include "options.hpp"
#include "parse.hpp"

namespace moe::bench {

struct CommandLine {
  std::string preset = "olmoe-1b-7b", shape, checkpoint, layer, weights = "f32,bf16", tokens = "1,4,16,64,256,1024",
              json;
  std::optional<Index> threads;
  Patience patience;
  bool list_presets = false, distributed = false;
  int chunks = 1;
  std::string wire = "exact", answers = "each";
};

/// @return as parse()
inline std::optional<int> read_command_line(int argc, char** argv, CommandLine& line) {
  CLI::App app{
      "Is sparse worth it here? Measures a sparse layer against dense FFNs of equal active and of equal total size,\n"
      "and against what one would write on Eigen by hand."};
  const auto add = [&](const char* name, auto& value, const std::string& what) {
    return app.add_option(name, value, what);
  };
  auto* preset = add("--preset", line.preset, "A published shape")->capture_default_str();
  auto* shape = add("--shape", line.shape, "Any other: d_model,d_ff,experts,top_k")->excludes(preset);
  auto* weights =
      add("--weights", line.weights, "Types of weights, with commas between them: " + names_of(weight_types))
          ->capture_default_str();
  auto* checkpoint = add("--checkpoint", line.checkpoint, "Real weights: a folder with config.json and *.safetensors");
  checkpoint->excludes(preset)->excludes(shape)->excludes(weights);
  add("--layer", line.layer, "What its tensors' names begin with: model.layers.3.mlp")->needs(checkpoint);
  add("--tokens", line.tokens, "Numbers of tokens in a call")->capture_default_str();
  add("--threads", line.threads, "Default: one a core, shared out among the ranks")->check(thread_count());
  add("--json", line.json, "Write a record for each row to this file, as rows are finished");
  const auto add_seconds = [&](const char* name, double& value, const char* what) {
    add(name, value, what)->capture_default_str()->check(above_zero());
  };
  add_seconds("--seconds", line.patience.each_token_count, "To spend on each number of tokens");
  add_seconds("--patience", line.patience.one_call, "Leave out what may take more seconds a call");
  auto* distributed = app.add_flag("--distributed", line.distributed, "Under mpirun: experts on all of its ranks");
  distributed->excludes(checkpoint);
  const auto add_to_it = [&](const char* name, auto& value, const char* what) {
    return add(name, value, what)->needs(distributed)->capture_default_str();
  };
  add_to_it("--chunks", line.chunks, "Parts in which a rank's tokens travel")->check(at_least_one());
  add_to_it("--wire", line.wire, "How numbers travel")->check(CLI::IsMember({"exact", "bfloat16"}));
  add_to_it("--answers", line.answers, "Each expert's, or a rank's summed")->check(CLI::IsMember({"each", "summed"}));
  app.add_flag("--list-presets", line.list_presets, "Print the published shapes and their parameters");
  return parse(app, argc, argv);
}

}  // namespace moe::bench
