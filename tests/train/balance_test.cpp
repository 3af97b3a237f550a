// Loads even out while a layer learns, without a loss for it.
#include <algorithm>
#include <numeric>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "moe/losses/bias_update.hpp"
#include "moe/moe.hpp"
#include "moe/train.hpp"

namespace moe {
namespace {

constexpr Index num_experts = 8, d_model = 16, top_k = 2, num_tokens = 128;

struct Outcome {
  double first_error, last_error;  // Σ (y − x)² of a batch
  double busiest;                  // most routes of an expert over the mean, in the last 100 batches
};

/// Learns y = x for tokens that all lean towards one side, so that a router alone prefers some experts.
/// @param balance  balance(router, workspace of the forward pass) after each step
template <class Router, class Balance>
Outcome learn(Router router, const Balance& balance) {
  constexpr unsigned steps = 600;
  MoeLayer layer(std::move(router), random_bank<float>(num_experts, d_model, 32, /*seed=*/2));
  auto gradient = zeros_like(layer);
  auto tape = tape_of(layer);
  AdamW<float> adam(parameters(layer), {.learning_rate = 3e-3});
  Matrix<float> y(d_model, num_tokens), d_x = Matrix<float>::Zero(d_model, num_tokens);
  std::vector<Index> load(std::size_t(num_experts), 0);
  Outcome outcome{};
  for (unsigned step = 0; step < steps; ++step) {
    Matrix<float> x = random_tokens<float>(d_model, num_tokens, 100 + step);
    x.array() += 0.5f;
    forward(layer, x, y, tape);
    outcome.last_error = (y - x).squaredNorm();
    if (step == 0) outcome.first_error = outcome.last_error;
    set_to_zero(parameters(gradient));
    backward(layer, x, (y - x) / float(num_tokens), tape, d_x, gradient);
    clip_gradients(parameters(gradient), 1.0);
    adam.step(parameters(gradient));
    balance(layer.router(), tape.ws);
    if (step + 100 < steps) continue;
    for (const Index e : tape.ws.routing.expert) ++load[std::size_t(e)];
  }
  const double mean = double(std::accumulate(load.begin(), load.end(), Index(0))) / double(num_experts);
  outcome.busiest = double(*std::max_element(load.begin(), load.end())) / mean;
  return outcome;
}

LinearTopK<float> biased_router() {
  return {random_weight<float>(num_experts, d_model, /*seed=*/1),
          {.top_k = top_k, .score = Score::sigmoid, .renormalize = true},
          {},
          Eigen::VectorXf::Zero(num_experts)};
}

void expect_learnt(const Outcome& outcome) { EXPECT_LT(outcome.last_error, outcome.first_error / 10); }

TEST(BalanceWithoutALoss, IsNeededHere) {
  const Outcome alone = learn(biased_router(), [](auto&, const auto&) {});
  expect_learnt(alone);
  EXPECT_GT(alone.busiest, 2.5);
}

TEST(BalanceWithoutALoss, ComesFromABiasThatFollowsTheLoad) {
  for (const BiasUpdateOptions& options :
       {BiasUpdateOptions{.rate = 1e-2}, BiasUpdateOptions{.rate = 1e-3, .step = BiasStep::proportional}}) {
    const Outcome balanced = learn(biased_router(), [&](LinearTopK<float>& router, const Workspace<float>& ws) {
      std::vector<Index> load;
      for (Index e = 0; e < num_experts; ++e) load.push_back(ws.plan.view().count(e));
      update_bias(load, router.selection_bias(), options);
    });
    expect_learnt(balanced);
    EXPECT_LT(balanced.busiest, 1.1);
  }
}

TEST(BalanceWithoutALoss, ComesFromQuantilesOfTheBatchBefore) {
  Eigen::VectorXf beta = Eigen::VectorXf::Zero(num_experts);
  std::vector<Scratch> scratch;
  const Serial serial;
  const Outcome balanced = learn(biased_router(), [&](LinearTopK<float>& router, const Workspace<float>& ws) {
    Matrix<float> scores(num_experts, num_tokens);
    sigmoid(logits_of(ws.routing, num_experts, num_tokens), scores);
    Workers workers(serial, scratch);
    balance_quantiles<float>(scores, top_k, /*rounds=*/1, beta, workers);
    router.selection_bias() = -beta;
  });
  expect_learnt(balanced);
  EXPECT_LT(balanced.busiest, 1.1);
}

TEST(BalanceWithoutALoss, ComesFromQuantilesOfTheBatchItself) {
  const QuantileBalanced<float> router(random_weight<float>(num_experts, d_model, /*seed=*/1),
                                       {.choice = {.top_k = top_k, .score = Score::sigmoid, .renormalize = true}});
  const Outcome balanced = learn(router, [](auto&, const auto&) {});
  expect_learnt(balanced);
  EXPECT_LT(balanced.busiest, 1.1);
}

}  // namespace
}  // namespace moe
