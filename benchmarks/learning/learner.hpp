/// @file  A model on its way through its steps.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "learning/context_model.hpp"
#include "learning/corpus.hpp"
#include "learning/model.hpp"
#include "learning/options.hpp"
#include "learning/run.hpp"
#include "moe/losses/bias_update.hpp"
#include "moe/train.hpp"
#include "text.hpp"
#include "timing.hpp"

namespace moe::bench {

class Learner {
 public:
  /// @param corpus, options  stay where they are
  Learner(const Kind& kind, Index steps, const Corpus& corpus, const LearnOptions& options, std::uint64_t seed)
      : corpus_(corpus),
        options_(options),
        executor_(options.threads),
        dense_steps_(kind.is_dense() ? 0 : Index(options.recipe.upcycle * double(steps))),
        model_(make_model(dense_steps_ > 0 ? parse_kind("dense") : kind, options, seed)) {
    run_.kind = kind;
    run_.seed = seed;
    run_.planned_steps = steps;
    run_.learning_rate = options.recipe.learning_rate;
    run_.flops_a_step = moe::bench::flops_a_step(kind, options);
    make_optimisers();
  }

  /// One of `rounds` equal parts of the way. Others have their turn in between, so that what disturbs the clock
  /// disturbs all alike.
  /// @throws std::runtime_error with step and learning rate, if it diverges.
  void learn(Index round, Index rounds, const Examples& held_out) {
    const Index last = run_.planned_steps * (round + 1) / rounds;
    if (last == step_) return;
    for (; step_ < last; ++step_) take_step();
    run_.curve.push_back({step_, model_.bits(held_out, executor_)});
    require_sense(run_.curve.back().bits);
    run_.seconds_a_step = median(seconds_);
    run_.numbers = count_numbers(model_.parameters());
    measure_loads();
  }

  const Run& run() const { return run_; }

 private:
  bool is_dense() const { return run_.kind.is_dense() || step_ < dense_steps_; }

  static bool is_of_router(const Parameter<float>& parameter) { return parameter.name.ends_with(".gate.weight"); }
  static std::vector<Parameter<float>> of_routers(std::vector<Parameter<float>> all) {
    std::erase_if(all, [](const auto& parameter) { return !is_of_router(parameter); });
    return all;
  }
  static std::vector<Parameter<float>> of_others(std::vector<Parameter<float>> all) {
    std::erase_if(all, is_of_router);
    return all;
  }

  /// One for routers, whose rate has a course of its own.
  void make_optimisers() {
    const Recipe& recipe = options_.recipe;
    const AdamWOptions of_all{.beta2 = recipe.beta2, .weight_decay = recipe.decay};
    std::vector<ParameterGroup> groups;
    if (!is_dense()) groups = {{.patterns = sparse_experts(), .learning_rate = recipe.expert_rate}};
    adam_.emplace(of_others(model_.parameters()), of_all, groups);
    router_adam_.emplace(of_routers(model_.parameters()), of_all);
  }

  std::vector<std::string> sparse_experts() const {
    std::vector<std::string> patterns;
    for (Index b = options_.dense_blocks; b < options_.blocks; ++b) {
      patterns.push_back("blocks." + std::to_string(b) + ".experts.*");
    }
    return patterns;
  }

  void upcycle_model() {
    auto& blocks = model_.blocks();
    for (Index b = options_.dense_blocks; b < options_.blocks; ++b) {
      blocks[std::size_t(b)] =
          upcycled(blocks[std::size_t(b)], run_.kind, options_, 100 * run_.seed + 10 * std::uint64_t(b));
    }
    make_optimisers();
    seconds_.clear();  // of dense steps
  }

  /// The rate of a step, as a share of the highest.
  double rate(double warm_up) const {
    return WarmUpCosine{.warm_up = Index(double(run_.planned_steps) * warm_up),
                        .steps = run_.planned_steps,
                        .lowest = options_.recipe.lowest}(step_);
  }

  void take_step() {
    const Recipe& recipe = options_.recipe;
    if (step_ == dense_steps_ && step_ > 0) upcycle_model();
    const Examples batch = corpus_.batch(options_.batch, run_.seed, std::uint64_t(step_));
    adam_->options().learning_rate = recipe.learning_rate * rate(recipe.warm_up);
    router_adam_->options().learning_rate =
        recipe.learning_rate * recipe.router_rate * rate(std::max(recipe.warm_up, recipe.router_warm_up));
    const double jitter = is_dense() ? 0 : recipe.jitter;
    const std::uint64_t noise = (run_.seed << 32) + std::uint64_t(step_) * std::uint64_t(options_.blocks);
    seconds_.push_back(seconds_of([&] {
      require_sense(model_.learn(batch, executor_, [&](auto& block) { add_losses(block); }, jitter, noise));
      const TakeOptions all{.max_norm = recipe.clip, .norm = gradient_norm(model_.gradients(), executor_)};
      adam_->take(of_others(model_.gradients()), all, executor_);
      router_adam_->take(of_routers(model_.gradients()), all, executor_);
    }));
  }

  /// Eight bits a byte are what one needs who knows nothing.
  void require_sense(double bits) {
    constexpr double nonsense = 12;
    if (bits < nonsense) return;  // nor is NaN
    throw std::runtime_error(
        text("%s, seed %d, diverges at step %td: %.3g bits a byte, at learning rate %.3g. Choose a "
             "--learning-rate below %.3g",
             run_.kind.words().c_str(), int(run_.seed), step_ + 1, bits, adam_->options().learning_rate,
             options_.recipe.learning_rate));
  }

  /// After the forward pass of a step.
  void add_losses(TrainableLayer<float>& block) const {
    if (block.logit_gradient().size() == 0) return;  // a dense one
    const auto& routing = block.workspace().routing;
    if (auto bias = block.selection_bias(); bias.size() > 0) {
      update_bias(loads_of(routing, run_.kind.experts), bias, {.rate = options_.recipe.bias_rate});
    }
    if (options_.recipe.balance > 0) {
      const LoadBalancingOptions form;
      const auto shares = measure_shares(routing, options_.batch, run_.kind.experts, form);
      add_load_balancing_gradient<float>(routing, form, shares, options_.recipe.balance, block.logit_gradient());
    }
    if (options_.recipe.z_loss > 0) {
      add_z_loss_gradient(logits_of(routing, run_.kind.experts, options_.batch), options_.recipe.z_loss,
                          block.logit_gradient());
    }
  }

  static std::vector<Index> loads_of(const Routing<float>& routing, Index num_experts) {
    std::vector<Index> loads(std::size_t(num_experts), 0);
    for (const Index e : routing.expert) ++loads[std::size_t(e)];
    return loads;
  }

  /// Of the held-out text, which went through the model last.
  void measure_loads() {
    run_.loads.clear();
    for (auto& block : model_.blocks()) {
      if (block.logit_gradient().size() == 0) continue;
      const auto& routing = block.workspace().routing;
      auto& shares = run_.loads.emplace_back();
      for (const Index load : loads_of(routing, run_.kind.experts)) {
        shares.push_back(double(load * run_.kind.experts) / double(routing.size()));
      }
    }
  }

  Run run_;
  Index step_ = 0;
  const Corpus& corpus_;
  const LearnOptions& options_;
  OpenMp executor_;
  Index dense_steps_;  // before it becomes sparse
  ContextModel model_;
  std::optional<AdamW<float>> adam_, router_adam_;
  std::vector<double> seconds_;  // of each step
};

}  // namespace moe::bench
