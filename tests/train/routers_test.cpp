// Every router's gradients against central differences in double, in a layer.
#include "allocations.hpp"

#include "moe/train.hpp"

#include <cstdint>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "errors.hpp"
#include "laws/gradient_laws.hpp"
#include "moe/moe.hpp"
#include "random.hpp"
#include "train/factories.hpp"

namespace moe {
namespace {

using laws::expect_true_gradients;
using laws::gradients_of;
using test::layer_of;
using test::random_matrix;
using test::random_rows;
using test::random_vector;

constexpr Index token_counts[] = {0, 1, 9, 40};

template <class Router>
void expect_true_gradients_of(const Router& router, const SideInputs<double>& side = {}) {
  for (const Index tokens : token_counts) expect_true_gradients(layer_of(router), tokens, 1, 40, side);
}

/// The same, where there is a side input for each token: side_of(number of tokens).
template <class Router, class SideOf>
void expect_true_gradients_with(const Router& router, const SideOf& side_of) {
  for (const Index tokens : token_counts) expect_true_gradients(layer_of(router), tokens, 1, 40, side_of(tokens));
}

LinearTopK<double> renormalizing(unsigned seed) { return {random_rows(5, 7, seed), {.top_k = 2, .renormalize = true}}; }

TEST(RouterGradients, OfNoisyTopK) {
  const NoisyTopK<double> shazeer(random_rows(5, 7, 2), random_rows(5, 7, 3), {.top_k = 2, .renormalize = true});
  const NoisyTopK<double> v_moe(random_rows(5, 7, 2), {}, {.top_k = 2}, 1.0 / 5);
  for (const auto& router : {shazeer, v_moe}) {
    expect_true_gradients_of(router);
    expect_true_gradients_of(router, {.seed = 4});
    expect_true_gradients_with(router, [](Index tokens) {
      static Matrix<double> noise;
      noise = random_matrix<Matrix<double>>(5, tokens, 5);
      return SideInputs<double>{.noise = {noise.data(), std::size_t(noise.size())}};
    });
  }
}

TEST(RouterGradients, OfSparseMixer) {
  for (const Index top_k : {1, 2, 5}) {
    for (const double jitter : {0.0, 0.1, 10.0}) {
      expect_true_gradients_of(SparseMixer<double>(random_rows(5, 7, 6), {.top_k = top_k, .jitter = jitter}));
    }
  }
}

TEST(RouterGradients, OfTopP) {
  for (const bool renormalize : {false, true}) {
    for (const double top_p : {0.01, 0.6, 1.0}) {
      const TopPOptions options{.top_p = top_p, .renormalize = renormalize};
      expect_true_gradients_of(TopP<double>(random_rows(5, 7, 7), options));
      expect_true_gradients_of(TopP<double>(random_rows(5, 7, 7), options, random_vector(5, 8)));
    }
  }
}

TEST(RouterGradients, OfReluRouter) {
  expect_true_gradients_of(ReluRouter<double>(random_rows(5, 7, 9)));
  expect_true_gradients_of(ReluRouter<double>(random_rows(5, 7, 9), random_vector(5, 10)));
}

TEST(RouterGradients, OfCosineTopK) {
  for (const double log_scale : {-1.0, 1.5, 9.0}) {  // the last one beyond its bound
    for (const Index projected : {1, 4, 9}) {
      expect_true_gradients_of(CosineTopK<double>(random_rows(projected, 7, 11), random_rows(5, projected, 12),
                                                  {.top_k = 2, .score = Score::sigmoid}, log_scale));
    }
  }
}

TEST(RouterGradients, OfCosinesWithZerosAreZero) {
  auto experts = random_rows(5, 4, 12);
  experts.row(2).setZero();
  const auto layer = layer_of(CosineTopK<double>(random_rows(4, 7, 11), experts, {.top_k = 5}, 1));
  auto x = random_matrix<Matrix<double>>(7, 6, 13);
  x.col(1).setZero();
  auto gradients = gradients_of(layer, x, random_matrix<Matrix<double>>(7, 6, 14));
  EXPECT_TRUE(gradients.of_parameters.router().logits().experts().row(2).isZero(0));
  EXPECT_FALSE(gradients.of_parameters.router().logits().experts().row(1).isZero());
  EXPECT_TRUE(gradients.of_x.allFinite());
}

TEST(RouterGradients, OfNormedTopK) {
  for (const double epsilon : {0.0, 0.1}) {
    for (const TopKOptions& options :
         {TopKOptions{.top_k = 3, .score = Score::softmax_of_chosen}, TopKOptions{.top_k = 2, .renormalize = true}}) {
      auto expert_scale = random_vector(5, 17);
      expert_scale(3) = 0;
      expect_true_gradients_of(
          NormedTopK<double>(random_rows(5, 7, 15), random_vector(7, 16), expert_scale, options, epsilon));
    }
  }
}

TEST(RouterGradients, OfCarriedTopK) {
  const CarriedTopK<double> router(random_rows(5, 7, 18), random_rows(5, 3, 19), {.top_k = 2});
  expect_true_gradients_of(router);
  expect_true_gradients_with(router, [](Index tokens) {
    static Matrix<double> previous;
    previous = random_matrix<Matrix<double>>(3, tokens, 20);
    return SideInputs<double>{.previous_logits = {previous.data(), std::size_t(previous.size())}};
  });
}

/// Text goes to wider experts than vision.
TEST(RouterGradients, OfTopKByModality) {
  const LinearTopK<double> text(random_rows(4, 7, 62), {.top_k = 2, .renormalize = true}, random_vector(4, 63),
                                0.1 * random_vector(4, 64));
  const LinearTopK<double> vision(random_rows(3, 7, 65), {.top_k = 2, .score = Score::sigmoid});
  const auto layer =
      MoeLayer(TopKByModality<double>({text, vision}),
               JoinedExperts(moe::random_bank<double>(4, 7, 9, 66), moe::random_bank<double>(3, 7, 5, 67)));
  for (const Index tokens : token_counts) {
    for (const Index every : {1, 3, 1000}) {  // all, some or but the first are of modality 1
      std::vector<std::uint8_t> modality;
      for (Index t = 0; t < tokens; ++t) modality.push_back(t % every == 0);
      expect_true_gradients(layer, tokens, 1, 40, {.modality = modality});
    }
    expect_true_gradients(layer, tokens, 1, 40);
  }
}

TEST(RouterGradients, OfTopKByModalityByLossesAreThoseOfTheTokensOwnExperts) {
  const LinearTopK<double> text(random_rows(4, 7, 62), {}), vision(random_rows(3, 7, 65), {});
  const auto layer = layer_of(TopKByModality<double>({text, vision}));
  auto tape = tape_of(layer);
  const std::vector<std::uint8_t> modality{0, 1, 1, 0, 0};
  tape.ws.side.modality = modality;
  const auto x = random_matrix<Matrix<double>>(7, 5, 1);
  Matrix<double> y(7, 5), d_x = Matrix<double>::Zero(7, 5);
  const Matrix<double> d_y = Matrix<double>::Zero(7, 5);
  auto gradient = zeros_like(layer);
  forward(layer, x, y, tape);
  add_load_balancing_gradient<double>(tape.ws.routing, {}, measure_shares(tape.ws.routing, 5, 7), 1,
                                      tape.logit_gradient());
  add_z_loss_gradient(logits_of(tape.ws.routing, 7, 5), 1, tape.logit_gradient());
  backward(layer, x, d_y, tape, d_x, gradient);
  EXPECT_TRUE(d_x.allFinite());
  EXPECT_GT(d_x.norm(), 0.1);
  const auto d_logits = tape.logit_gradient();
  for (Index t = 0; t < 5; ++t) {
    const bool sees = modality[std::size_t(t)] == 1;
    // exp(−∞) of Eigen 3.4 is not 0, but the smallest normal number.
    EXPECT_LE(d_logits.col(t).segment(sees ? 0 : 4, sees ? 4 : 3).cwiseAbs().maxCoeff(), 1e-300) << t;
  }
}

TEST(RouterGradients, OfShapedTopK) {
  for (const LogitShape& shape :
       {LogitShape{}, {.multiplier = -0.3}, {.soft_cap = 2}, {.multiplier = 3, .soft_cap = 2}}) {
    expect_true_gradients_of(
        ShapedTopK<double>(random_rows(5, 7, 53), {.top_k = 2, .score = Score::sigmoid}, shape, random_vector(5, 54)));
    const CosineLogits<double> cosine(random_rows(4, 7, 55), random_rows(5, 4, 56), 1);
    expect_true_gradients_of(LogitsRouter(ShapedLogits(cosine, shape), TopKChoice<double>(5, {.top_k = 2})));
  }
}

TEST(RouterGradients, OfShapedLogitsThatAreNoisyOrCarried) {
  const NoisyLogits<double> noisy(random_rows(5, 7, 57), random_rows(5, 7, 58));
  expect_true_gradients_of(LogitsRouter(ShapedLogits(noisy, {.soft_cap = 2}), TopKChoice<double>(5, {.top_k = 2})),
                           {.seed = 59});
  const CarriedLogits<double> carried(random_rows(5, 7, 60), random_rows(5, 3, 61));
  expect_true_gradients_with(
      LogitsRouter(ShapedLogits(carried, {.soft_cap = 2}), TopKChoice<double>(5, {.top_k = 2})), [](Index tokens) {
        static Matrix<double> previous;
        previous = random_matrix<Matrix<double>>(3, tokens, 20);
        return SideInputs<double>{.previous_logits = {previous.data(), std::size_t(previous.size())}};
      });
}

/// Two layers, of which the second one's router hears the first one's.
struct Carrying {
  using Scalar = double;
  using Layer = decltype(layer_of(std::declval<CarriedTopK<double>>()));

  Layer first, second;

  Index d_model() const { return first.d_model(); }
  void forward(const ConstMatrixRef<double>& x, MatrixRef<double> y, Workspace<double>& ws) const {
    Workspace<double> of_first;
    Matrix<double> between(x.rows(), x.cols());
    first.forward(x, between, of_first);
    ws.side.previous_logits = of_first.routing.logits;
    second.forward(between, y, ws);
  }
};
void visit_parameters(Carrying& layer, ParameterVisitor<double>& visit) {
  visit.in("first", layer.first);
  visit.in("second", layer.second);
}

struct CarryingTape {
  decltype(tape_of(std::declval<const Carrying::Layer&>())) first, second;
  Matrix<double> between;
  Workspace<double>& workspace() { return second.ws; }
  Eigen::Map<Matrix<double>> logit_gradient() { return second.logit_gradient(); }
};
CarryingTape tape_of(const Carrying&) { return {}; }

void forward(const Carrying& layer, const ConstMatrixRef<double>& x, MatrixRef<double> y, CarryingTape& tape,
             ExecutorRef executor) {
  tape.between.resize(x.rows(), x.cols());
  forward(layer.first, x, tape.between, tape.first, executor);
  tape.second.ws.side.previous_logits = tape.first.ws.routing.logits;
  forward(layer.second, tape.between, y, tape.second, executor);
}
void backward(const Carrying& layer, const ConstMatrixRef<double>& x, const ConstMatrixRef<double>& d_y,
              CarryingTape& tape, MatrixRef<double> d_x, Carrying& gradient, ExecutorRef executor) {
  Matrix<double> d_between = Matrix<double>::Zero(x.rows(), x.cols());
  backward(layer.second, tape.between, d_y, tape.second, d_between, gradient.second, executor);
  Workers workers(executor, tape.second.ws.scratch);
  carried_backward<double>(layer.second.router().logits(), tape.second.logit_gradient(), tape.first.logit_gradient(),
                           workers);
  backward(layer.first, x, d_between, tape.first, d_x, gradient.first, executor);
}

TEST(RouterGradients, OfLogitsThatTheNextLayerCarries) {
  const CarriedTopK<double> first(random_rows(5, 7, 21), random_rows(5, 5, 22), {.top_k = 2});
  const CarriedTopK<double> second(random_rows(5, 7, 23), random_rows(5, 5, 24), {.top_k = 2});
  for (const Index tokens : token_counts)
    expect_true_gradients(Carrying{layer_of(first), layer_of(second)}, tokens, 25);
}

TEST(Tape, OfAnEmptyBatchTakesLossesAsAnyOther) {
  const auto layer = layer_of(renormalizing(45));
  auto tape = tape_of(layer);
  Matrix<double> x(7, 0), y(7, 0);
  forward(layer, x, y, tape);
  const auto shares = measure_shares(tape.ws.routing, 0, 5);
  EXPECT_EQ(test::error_of([&] {
              add_load_balancing_gradient<double>(tape.ws.routing, {}, shares, 0.01, tape.logit_gradient());
              add_z_loss_gradient(logits_of(tape.ws.routing, 5, 0), 0.01, tape.logit_gradient());
            }),
            "no error");
}

TEST(CarriedBackward, RefusesWhatDoesNotFit) {
  const CarriedTopK<double> router(random_rows(5, 7, 18), random_rows(5, 3, 19), {.top_k = 2});
  std::vector<Scratch> scratch;
  const Serial serial;
  Workers workers(serial, scratch);
  const auto error = [&](Index rows, Index previous_rows, Index previous_cols) {
    return test::error_of([&] {
      Matrix<double> d = Matrix<double>::Zero(rows, 4), d_previous = Matrix<double>::Zero(previous_rows, previous_cols);
      carried_backward<double>(router.logits(), d, d_previous, workers);
    });
  };
  EXPECT_EQ(error(5, 3, 4), "no error");
  EXPECT_EQ(error(6, 3, 4), "carried_backward: d_logits.rows() is 6, expected 5");
  EXPECT_EQ(error(5, 5, 4), "carried_backward: d_previous.rows() is 5, expected 3");
  EXPECT_EQ(error(5, 3, 9), "carried_backward: d_previous.cols() is 9, expected 4");
}

TEST(RouterGradients, OfBaseLayers) {
  for (const bool balance : {false, true}) {
    for (const bool residual : {false, true}) {
      expect_true_gradients_of(
          BaseLayersRouter<double>(random_rows(4, 7, 26), {.balance = balance, .residual = residual}));
    }
  }
}

TEST(RouterGradients, OfQuantileBalancing) {
  for (const Score score : {Score::softmax, Score::sigmoid, Score::softmax_of_chosen}) {
    expect_true_gradients_of(QuantileBalanced<double>(random_rows(5, 7, 27), {.choice = {.top_k = 2, .score = score}}));
  }
}

TEST(RouterGradients, OfATableOfTokens) {
  const auto table = random_hash_table(/*vocabulary=*/11, /*num_experts=*/5, /*top_k=*/2, 28);
  const auto ids = [](Index tokens) {
    static std::vector<Index> all;
    all.clear();
    for (Index t = 0; t < tokens; ++t) all.push_back(t * 7 % 11);
    return SideInputs<double>{.token_ids = all};
  };
  expect_true_gradients_with(TokenHash<double>(7, 5, table), ids);
  for (const Score score : {Score::softmax, Score::sqrt_softplus}) {
    const TopKOptions options{.top_k = 2, .score = score, .renormalize = true, .scale = 1.5};
    expect_true_gradients_with(TokenHash<double>(random_rows(5, 7, 29), options, table), ids);
    expect_true_gradients_with(TokenHash<double>(random_rows(5, 7, 29), options, table, random_vector(5, 30)), ids);
  }
}

TEST(RouterGradients, OfARouterThatKnowsNothing) { expect_true_gradients_of(RandomRouter<double>(7, 5, 2, 31)); }

TEST(RouterGradients, OfSecondExpertsThatMayBeDropped) {
  for (const KeepSecond keep :
       {KeepSecond::always, KeepSecond::never, KeepSecond::above_threshold, KeepSecond::at_random}) {
    expect_true_gradients_of(WithSecondExpert(renormalizing(32), {.keep = keep, .threshold = 0.3}), {.seed = 33});
  }
}

TEST(RouterGradients, OfReplay) {
  expect_true_gradients_of(Replay(renormalizing(34)));
  for (const ReplayedWeights weights : {ReplayedWeights::recorded, ReplayedWeights::anew}) {
    expect_true_gradients_with(Replay(renormalizing(34), {.weights = weights}), [](Index tokens) {
      static Routing<double> recorded;
      recorded.clear();
      for (Index t = 0; t < tokens; ++t) {
        recorded.add(t, t * 3 % 5, 0.5 + 0.1 * double(t % 4));
        recorded.add(t, (t * 3 + 1) % 5, 0.3);
      }
      return SideInputs<double>{.recorded = &recorded};
    });
  }
}

TEST(RouterGradients, OfReplayWithWeightsAnewAreNotZero) {
  const auto x = random_matrix<Matrix<double>>(7, 6, 13), d_y = random_matrix<Matrix<double>>(7, 6, 14);
  Routing<double> recorded;
  for (Index t = 0; t < 6; ++t) {
    recorded.add(t, t * 3 % 5, 0.7);
    recorded.add(t, (t * 3 + 1) % 5, 0.3);
  }
  const auto gradient_with = [&](ReplayedWeights weights) {
    const auto layer = layer_of(Replay(renormalizing(34), {.weights = weights}));
    return gradients_of(layer, x, d_y, Serial{}, {.recorded = &recorded})
        .of_parameters.router()
        .router()
        .weight()
        .norm();
  };
  EXPECT_EQ(gradient_with(ReplayedWeights::recorded), 0);
  EXPECT_GT(gradient_with(ReplayedWeights::anew), 1e-3);
}

TEST(RouterGradients, OfPartsThatNoNamePutsTogether) {
  expect_true_gradients_of(LogitsRouter(CosineLogits<double>(random_rows(4, 7, 46), random_rows(5, 4, 47), 1),
                                        SinkhornChoice<double>(5, {.top_k = 2})));
  expect_true_gradients_of(
      LogitsRouter(NormedLogits<double>(random_rows(5, 7, 48), random_vector(7, 49)), ChoiceByExperts<double>()));
  expect_true_gradients_of(
      LogitsRouter(NoisyLogits<double>(random_rows(5, 7, 50), random_rows(5, 7, 51)), TopPChoice<double>({})),
      {.seed = 52});
}

TEST(RouterGradients, OfRoutersWhoseWeightsAreNotTheirLast) {
  const CapacityOptions limited{.capacity = fixed_capacity(6), .renormalize = true};
  expect_true_gradients_of(
      WithCapacity(TopP<double>(random_rows(5, 7, 35), {.top_p = 0.6, .renormalize = true}), limited));
  expect_true_gradients_of(WithCapacity(SparseMixer<double>(random_rows(5, 7, 36)), limited));
  expect_true_gradients_of(WithCapacity(
      NormedTopK<double>(random_rows(5, 7, 37), random_vector(7, 38), random_vector(5, 39).cwiseAbs(), {.top_k = 2}),
      limited));
}

}  // namespace
}  // namespace moe
