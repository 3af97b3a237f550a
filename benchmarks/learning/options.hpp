/// @file  What learn can be told.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include <CLI/CLI.hpp>

#include "learning/context_model.hpp"
#include "learning/kind.hpp"
#include "learning/recipe.hpp"
#include "machine.hpp"
#include "moe/core/types.hpp"
#include "parse.hpp"

namespace moe::bench {

struct LearnOptions {
  std::vector<std::string> texts;
  std::string models = "dense,8x2,8x2@1,8x2@0.5,16x1,16x1@1,16x1@0.5,64x3+1", json;
  Index steps = 4000, batch = 1024, seeds = 3, first_seed = 1, threads = 1, at_once = 0, active = 128, blocks = 1,
        dense_blocks = 0;
  ContextModelShape shape;
  Recipe recipe;
  std::vector<Kind> kinds;  // of `models`
};

namespace detail {

inline void add_recipe(CLI::App& app, Recipe& r) {
  const auto add = [&](const char* name, double& value, const char* what) {
    app.add_option(name, value, what)->check(CLI::NonNegativeNumber)->group("Recipe");
  };
  app.add_option("--learning-rate", r.learning_rate, "The highest")->check(above_zero())->group("Recipe");
  add("--warm-up", r.warm_up, "The share of the steps in which it rises");
  add("--lowest", r.lowest, "What is left of it in the end");
  app.add_option("--beta2", r.beta2, "Of AdamW")->check(CLI::Range(0.0, 0.9999999))->group("Recipe");
  add("--decay", r.decay, "Of weights");
  app.add_option("--clip", r.clip, "The largest norm of a gradient")->check(above_zero())->group("Recipe");
  add("--balance", r.balance, "Coefficient of the load balancing loss");
  add("--bias-rate", r.bias_rate, "Of the selection bias, which balances without a loss");
  add("--z-loss", r.z_loss, "Coefficient of the z-loss");
  add("--router-rate", r.router_rate, "Learning rate of routers, relative");
  add("--expert-rate", r.expert_rate, "Learning rate of routed experts, relative");
  add("--router-scale", r.router_scale, "Size of a router's first weights, relative");
  add("--expert-scale", r.expert_scale, "Size of experts' first weights, relative");
  add("--combine-scale", r.combine_scale, "What the weights of a token's experts sum to");
  add("--router-warm-up", r.router_warm_up, "The share of the steps in which the rate of routers rises");
  add("--jitter", r.jitter, "What sparse blocks read while they learn is multiplied by 1 +- up to so much");
  app.add_option("--upcycle", r.upcycle, "The share of the steps that sparse models learn as dense ones")
      ->check(CLI::Range(0.0, 0.9))
      ->group("Recipe");
  app.add_option("--sigmoid", r.sigmoid, "Scores of routers: else softmax")->group("Recipe");
  app.add_option("--renormalize", r.renormalize, "Weights of top 2 and more sum to 1")->group("Recipe");
}

/// `dense` first, as all others are held against it; beside those whose time is given also those of as many steps,
/// which tell how long a step takes.
inline std::vector<Kind> parse_kinds(const std::string& models, Index active) {
  std::vector<Kind> kinds{parse_kind("dense")};
  const auto add = [&](const Kind& kind) {
    for (const Kind& other : kinds) {
      if (other.spec == kind.spec) return;
    }
    kinds.push_back(kind);
  };
  for (const std::string& spec : CLI::detail::split(models, ',')) {
    const Kind kind = parse_kind(spec);
    if (!kind.is_dense() && active % (kind.top_k + kind.shared) != 0) {
      throw CLI::ValidationError(
          "--models", text("%s has %td active experts, expected a number that divides --active %td", spec.c_str(),
                           kind.top_k + kind.shared, active));
    }
    if (kind.time > 0) add(parse_kind(spec.substr(0, spec.find('@'))));
    add(kind);
  }
  return kinds;
}

}  // namespace detail

/// @return as parse()
inline std::optional<int> read_options(int argc, char** argv, LearnOptions& o) {
  CLI::App app(
      "Does sparse pay in what it learns? Trains byte-level language models, dense and sparse, on the same data.");
  app.option_defaults()->always_capture_default();
  app.add_option("--text", o.texts, "Files to learn from; else Eigen's headers, Python's library and Perl's manual");
  app.add_option("--models", o.models,
                 "FFNs with commas between them: dense*4, 8x2 (8 experts, top 2), 64x7+1 (and 1 shared), each with "
                 "@0.5 behind it for half of the time of dense");
  const auto add_count = [&](const char* name, Index& value, const char* what) {
    app.add_option(name, value, what)->check(at_least_one());
  };
  add_count("--steps", o.steps, "Steps of each model");
  add_count("--batch", o.batch, "Bytes to guess in a step");
  add_count("--seeds", o.seeds, "Runs of each model on each text");
  add_count("--first-seed", o.first_seed, "Number of the first of them, to share runs out");
  add_count("--threads", o.threads, "Of a run: small models do not pay for more than one");
  app.add_option("--at-once", o.at_once,
                 "Texts and seeds that learn at the same time; 0: as many as there are cores for")
      ->check(CLI::NonNegativeNumber);
  add_count("--d-model", o.shape.d_model, "Width of the model");
  add_count("--context", o.shape.context, "Bytes that it sees");
  add_count("--active", o.active, "Hidden units that a token meets in a block");
  add_count("--blocks", o.blocks, "FFNs, one on the other");
  app.add_option("--dense-blocks", o.dense_blocks, "How many of them, the first, are dense in sparse models too")
      ->check(CLI::NonNegativeNumber);
  app.add_option("--json", o.json, "Write the curves to this file, as they grow");
  detail::add_recipe(app, o.recipe);
  app.final_callback([&] {
    o.kinds = detail::parse_kinds(o.models, o.active);
    if (o.dense_blocks >= o.blocks)
      throw CLI::ValidationError("--dense-blocks", text("got %td, expected less than the %td of --blocks, or no block "
                                                        "is sparse",
                                                        o.dense_blocks, o.blocks));
    if (o.recipe.upcycle > 0) {
      for (const Kind& kind : o.kinds) {
        if (!kind.is_dense() && (kind.shared > 0 || kind.experts % kind.top_k != 0))
          throw CLI::ValidationError("--upcycle",
                                     "got " + kind.spec +
                                         " in --models, expected no shared experts, and "
                                         "experts that are copies of a dense FFN, cut into as many as a token "
                                         "meets");
      }
    }
    if (o.threads > usable_cores())
      throw CLI::ValidationError("--threads",
                                 text("got %td, expected at most %td, the cores of this machine: with more "
                                      "the times say nothing",
                                      o.threads, usable_cores()));
    if (o.at_once == 0) o.at_once = usable_cores() / o.threads;
    if (o.at_once > usable_cores() / o.threads)
      throw CLI::ValidationError("--at-once",
                                 text("got %td of %td threads each, expected at most %td, for which there are cores: "
                                      "with more the times say nothing",
                                      o.at_once, o.threads, usable_cores() / o.threads));
  });
  return parse(app, argc, argv);
}

}  // namespace moe::bench
