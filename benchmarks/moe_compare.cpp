/// @file  Is sparse worth it here? Measures a sparse layer against dense ones of equal size, and against Eigen by hand.
#include <algorithm>
#include <cstdio>
#include <exception>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include <CLI/CLI.hpp>

#include "compare.hpp"
#include "limits.hpp"
#include "machine.hpp"
#include "memory.hpp"
#include "options.hpp"
#include "progress.hpp"
#include "records.hpp"
#include "table.hpp"
#include "verdict.hpp"

namespace {

using namespace moe::bench;
using moe::Index;

struct Options {
  std::string preset = "olmoe-1b-7b", shape, weights = "f32,bf16", tokens = "1,4,16,64,256,1024", json;
  Index threads = std::max(1U, std::thread::hardware_concurrency());
  Patience patience;
  bool list_presets = false;
};

/// @return the exit code where there is nothing more to do
std::optional<int> parse(int argc, char** argv, Options& options) {
  CLI::App app{
      "Is sparse worth it here? Measures a sparse layer against dense FFNs of equal active and of equal total size,\n"
      "and against what one would write on Eigen by hand."};
  auto* preset = app.add_option("--preset", options.preset, "A published shape")->capture_default_str();
  app.add_option("--shape", options.shape, "Any other: d_model,d_ff,experts,top_k")->excludes(preset);
  app.add_option("--weights", options.weights, "Of f32, bf16, f16")->capture_default_str();
  app.add_option("--tokens", options.tokens, "Numbers of tokens in a call")->capture_default_str();
  app.add_option("--threads", options.threads, "As many as there are cores")->check(CLI::PositiveNumber);
  app.add_option("--json", options.json, "Write a record for each row to this file");
  app.add_flag("--list-presets", options.list_presets, "Print the published shapes and their parameters");
  app.add_option("--seconds", options.patience.each_token_count, "To spend on each number of tokens")
      ->capture_default_str();
  app.add_option("--patience", options.patience.one_call, "Leave out what takes more seconds a call")
      ->capture_default_str();
  try {
    app.parse(argc, argv);
    return std::nullopt;
  } catch (const CLI::ParseError& error) {
    return app.exit(error);
  }
}

/// What the weights of a published model have and the layers here have not.
std::string left_out(const moe::MoeShape& shape) {
  std::string what;
  if (shape.expert_bias) what += "  Its experts' biases are left out.\n";
  if (shape.num_zero_experts > 0) what += "  Its experts without parameters are left out.\n";
  if (!shape.router) what += "  Its own router is not a top-k of independent scores; a softmax stands in for it.\n";
  return what;
}

void print_title(const Setting& setting) {
  const moe::MoeShape& shape = setting.shape;
  std::printf("%s, %s weights: d_model %td, d_ff %td, %td experts, top %td", setting.shape_name.c_str(),
              setting.weights.c_str(), shape.d_model, shape.d_ff, shape.num_experts, shape.top_k);
  if (shape.d_ff_shared > 0) std::printf(", shared d_ff %td", shape.d_ff_shared);
  std::printf("\n%s\n", left_out(shape).c_str());
}

/// Prints the table as it grows.
template <class W>
std::vector<Row> compare(const Options& options, const Setting& setting) {
  const auto token_counts = parse_numbers(options.tokens, "--tokens");
  const Index max_tokens = *std::max_element(token_counts.begin(), token_counts.end());
  const Index layers = layers_beyond_cache(setting.shape, sizeof(W));
  require_memory(bytes_of_arena(setting.shape, layers, sizeof(W), max_tokens),
                 setting.shape_name + " with " + setting.weights + " weights");

  Progress progress;
  const double steps = double(token_counts.size()) + 1;
  const auto arena = make_arena<W>(setting.shape, layers, setting.threads,
                                   [&](double share) { progress.show(share / steps, "random weights"); });
  Comparison comparison(arena, max_tokens, setting.limits, options.patience);
  progress.clear();
  print_title(setting);
  std::printf("%s", table_head().c_str());

  std::vector<Row> rows;
  for (std::size_t i = 0; i < token_counts.size(); ++i) {
    progress.show(double(i + 1) / steps, setting.weights + ", " + detail::tokens_text(token_counts[i]));
    const auto new_rows = comparison.rows_for(token_counts[i]);
    progress.clear();
    std::printf("%s\n", table_lines(new_rows, setting.shape).c_str());
    std::fflush(stdout);
    rows.insert(rows.end(), new_rows.begin(), new_rows.end());
  }
  std::printf("%s\n\n", wrapped(verdict(rows)).c_str());
  return rows;
}

Limits measure_and_print_limits(Index threads) {
  std::printf("%s, %td thread%s, %s\n", processor_name().c_str(), threads, threads == 1 ? "" : "s",
              compiler_name().c_str());
  Progress progress;
  progress.show(0, "what this machine can do");
  const Limits limits = measure_limits(threads);
  progress.clear();
  std::printf("limits measured: %s GFLOP/s of float multiply-adds, %s GB/s read from memory\n\n",
              three_digits(limits.fma_gflops).c_str(), three_digits(limits.read_gbs).c_str());
  return limits;
}

constexpr const char* legend =
    "reads: bytes of the experts that were used. share of limit: the time that the measured limits allow, by the time\n"
    "taken. Dense FFNs, of as many parameters as a token meets (active) or as there are (total), run on this library "
    "as\n"
    "well. By hand: Eigen's matrix-vector products per token, or its matrix products per expert. Every call gets "
    "other\n"
    "tokens, and weights that no cache holds. There is no step that combines: experts add to the output where they "
    "work.\n";

int run(const Options& options) {
  Setting setting{.shape_name = options.shape.empty() ? options.preset : options.shape,
                  .shape = options.shape.empty() ? moe::layer_shape(options.preset) : parse_shape(options.shape),
                  .weights = {},
                  .threads = moe::OpenMp(options.threads).workers(),
                  .limits = {}};
  const auto weight_types = parse_weight_types(options.weights);
  (void)parse_numbers(options.tokens, "--tokens");
  setting.limits = measure_and_print_limits(setting.threads);

  auto records = nlohmann::ordered_json::array();
  int exit_code = 0;
  for (const WeightType type : weight_types) {
    setting.weights = name_of(type);
    try {
      const auto rows = with_type(type, [&]<class W>(std::type_identity<W>) { return compare<W>(options, setting); });
      for (const Row& row : rows) {
        if (row.measured) records.push_back(record_of(row, setting));
      }
    } catch (const DoesNotFit& refusal) {
      std::fprintf(stderr, "moe_compare: %s\n", refusal.what());
      exit_code = 1;
    }
  }
  std::printf("%s", legend);
  if (!options.json.empty()) write_whole(options.json, records.dump(1) + "\n");
  return exit_code;
}

}  // namespace

int main(int argc, char** argv) try {
  Options options;
  if (const auto exit_code = parse(argc, argv, options)) return *exit_code;
  if (options.list_presets) {
    std::printf("%s", table_of_presets().c_str());
    return 0;
  }
  return run(options);
} catch (const std::exception& error) {
  std::fprintf(stderr, "moe_compare: %s\n", error.what());
  return 1;
}
