/// @file  A model on its way through its steps.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <utility>
#include <vector>

#include "learning/context_model.hpp"
#include "learning/corpus.hpp"
#include "learning/model.hpp"
#include "learning/options.hpp"
#include "learning/run.hpp"
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
        model_(make_model(kind, options, seed)),
        adam_(model_.parameters(), {.beta2 = options.recipe.beta2, .weight_decay = options.recipe.decay},
              groups(kind, options.recipe)) {
    run_.kind = kind;
    run_.seed = seed;
    run_.planned_steps = steps;
    run_.learning_rate = options.recipe.learning_rate;
    run_.flops_a_step = moe::bench::flops_a_step(kind, options);
    run_.numbers = count_numbers(model_.parameters());
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
    measure_loads();
  }

  const Run& run() const { return run_; }

 private:
  static std::vector<ParameterGroup> groups(const Kind& kind, const Recipe& recipe) {
    if (kind.is_dense()) return {};
    return {{.patterns = {"*.gate.weight"}, .learning_rate = recipe.router_rate},
            {.patterns = {"*.experts.*"}, .learning_rate = recipe.expert_rate}};
  }

  void take_step() {
    const Recipe& recipe = options_.recipe;
    const WarmUpCosine rate{.warm_up = Index(double(run_.planned_steps) * recipe.warm_up),
                            .steps = run_.planned_steps,
                            .lowest = recipe.lowest};
    const Examples batch = corpus_.batch(options_.batch, run_.seed, std::uint64_t(step_));
    adam_.options().learning_rate = recipe.learning_rate * rate(step_);
    seconds_.push_back(seconds_of([&] {
      require_sense(model_.learn(batch, executor_, [&](auto& block) { add_losses(block); }));
      clip_gradients(model_.gradients(), recipe.clip, executor_);
      adam_.step(model_.gradients(), executor_);
    }));
  }

  /// Eight bits a byte are what one needs who knows nothing.
  void require_sense(double bits) {
    constexpr double nonsense = 12;
    if (bits < nonsense) return;  // nor is NaN
    throw std::runtime_error(
        text("%s, seed %d, diverges at step %td: %.3g bits a byte, at learning rate %.3g. Choose a "
             "--learning-rate below %.3g",
             run_.kind.words().c_str(), int(run_.seed), step_ + 1, bits, adam_.options().learning_rate,
             options_.recipe.learning_rate));
  }

  void add_losses(TrainableLayer<float>& block) const {
    if (run_.kind.is_dense()) return;
    const auto& routing = block.workspace().routing;
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

  /// Of the held-out text, which went through the model last.
  void measure_loads() {
    if (run_.kind.is_dense()) return;
    const auto experts = double(run_.kind.experts);
    run_.loads.clear();
    for (auto& block : model_.blocks()) {
      const auto& routing = block.workspace().routing;
      auto& load = run_.loads.emplace_back(std::size_t(run_.kind.experts), 0.0);
      for (const Index e : routing.expert) load[std::size_t(e)] += experts / double(routing.size());
    }
  }

  Run run_;
  Index step_ = 0;
  const Corpus& corpus_;
  const LearnOptions& options_;
  OpenMp executor_;
  ContextModel model_;
  AdamW<float> adam_;
  std::vector<double> seconds_;  // of each step
};

}  // namespace moe::bench
