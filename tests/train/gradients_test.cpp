// Gradients of a bank behind routers of every kind against central differences in double.
#include "allocations.hpp"

#include "moe/train.hpp"

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
using test::Random;
using test::random_bank;
using test::random_matrix;
using test::random_router;

constexpr Index token_counts[] = {0, 1, 9, 40};

TEST(Gradients, OfABankWithARouterThatRenormalises) {
  for (const Index tokens : token_counts) {
    expect_true_gradients(
        MoeLayer(random_router(5, 13, {.top_k = 2, .renormalize = true}, 1), random_bank(5, 13, 19, 2)), tokens, 3);
  }
}

TEST(Gradients, OfABankAtEveryWidth) {
  for (const Index d_model : laws::gradient_sizes) {
    for (const Index d_ff : {Index(1), d_model, 2 * d_model + 1}) {
      expect_true_gradients(MoeLayer(random_router(3, d_model, {.top_k = 2}, 4), random_bank(3, d_model, d_ff, 5)), 7,
                            6, 10);
    }
  }
}

TEST(Gradients, OfEveryGatedActivationWithBiases) {
  const auto check = [](auto act) {
    expect_true_gradients(MoeLayer(random_router(4, 9, {.top_k = 3, .score = Score::softmax_of_chosen}, 7, true),
                                   random_bank<double>(4, 9, 70, 8, true, 1, act)),
                          12, 9);
  };
  check(SwiGlu{});
  check(GeGlu{});
  check(GeGluTanh{});
  check(ReGlu{});
  check(Glu<ReluSquared>{});
  check(GptOssGlu{.limit = 1});
  check(ClampedInputGlu<Silu>{.limit = 1});
  check(ClampedOutputGlu<Silu>{.limit = 0.5});
  check(SoftcappedSwiGlu{.gate_cap = 1, .up_cap = 2});
  check(SoftcappedSwiGlu{.gate_cap = 0, .up_cap = 0.5});
  check(SoftcappedSwiGlu{.gate_cap = 0.5, .up_cap = 0});
}

TEST(Gradients, OfBanksThatAreNotGatedWithEveryActivation) {
  const auto check = [](auto act, bool biases) {
    for (const WeightOn weight_on : {WeightOn::output, WeightOn::input}) {
      const TopKOptions options{.top_k = 2, .score = Score::sigmoid, .weight_on = weight_on};
      for (const Index tokens : token_counts) {
        expect_true_gradients(
            MoeLayer(random_router(4, 9, options, 61), random_bank<double>(4, 9, 70, 62, biases, 1, act)), tokens, 63,
            20);
      }
    }
  };
  check(Relu{}, true);
  check(ReluSquared{}, false);
  check(Silu{}, true);
  check(Gelu{}, true);
  check(GeluTanh{}, false);
}

TEST(Gradients, OfABankThatIsNotGatedAtEveryWidth) {
  for (const Index d_model : laws::gradient_sizes) {
    for (const Index d_ff : {Index(1), d_model, 2 * d_model + 1}) {
      expect_true_gradients(MoeLayer(random_router(3, d_model, {.top_k = 2}, 64),
                                     random_bank<double>(3, d_model, d_ff, 65, true, 1, ReluSquared{})),
                            7, 66, 10);
    }
  }
}

TEST(Gradients, OfEveryRuleForWeights) {
  const auto check = [](const TopKOptions& options, bool selection_bias = false) {
    expect_true_gradients(
        MoeLayer(random_router(8, 10, options, 11, true, selection_bias), random_bank(8, 10, 6, 12, true)), 10, 13);
  };
  for (const WeightOn weight_on : {WeightOn::output, WeightOn::input}) {
    for (const bool renormalize : {false, true}) {
      for (const Score score : {Score::softmax, Score::softmax_of_chosen, Score::sigmoid, Score::sqrt_softplus}) {
        check({.top_k = 1, .score = score, .renormalize = renormalize, .weight_on = weight_on});
        check({.top_k = 3, .score = score, .renormalize = renormalize, .scale = 2.5, .weight_on = weight_on});
      }
    }
  }
  check({.top_k = 3, .renormalize = true, .norm = 2});
  check({.top_k = 3, .renormalize = true, .norm = 3, .epsilon = 0.1});
  check({.top_k = 3, .renormalize = true, .floor = 10});
  check({.top_k = 3,
         .score = Score::sigmoid,
         .renormalize = true,
         .epsilon = 1e-20,
         .scale = 2.5,
         .num_groups = 4,
         .kept_groups = 2,
         .group_top = 2},
        true);
}

TEST(Gradients, OfEveryRuleForWhatRanksAndWeighs) {
  const auto check = [](const TopKOptions& options) {
    const Index experts = 8, selectable = experts - options.always_chosen;
    const LinearTopK<double> router(random_matrix<Weight<double>>(experts, 10, 30), options, {},
                                    random_matrix<Eigen::VectorXd>(selectable, 1, 31, 0.8));
    expect_true_gradients(MoeLayer(router, random_bank(experts, 10, 6, 32, true)), 10, 33, 10);
  };
  for (const Score score : {Score::softmax, Score::softmax_of_chosen, Score::sigmoid, Score::sqrt_softplus}) {
    for (const bool renormalize : {false, true}) {
      check({.top_k = 2, .score = score, .renormalize = renormalize, .bias_on = BiasOn::logits});
      check({.top_k = 2,
             .score = score,
             .renormalize = renormalize,
             .num_groups = 4,
             .kept_groups = 2,
             .group_top = 2,
             .rejected_groups = RejectedGroups::ranked_at_zero});
      check({.top_k = 3, .score = score, .renormalize = renormalize, .scale = 8, .always_chosen = 2});
      check({.top_k = 1, .score = score, .renormalize = renormalize, .weigh_biased = true, .always_chosen = 7});
    }
    check({.top_k = 2, .score = score, .weigh_biased = true});
    check({.top_k = 3, .score = score, .renormalize = true, .norm = 2, .weigh_biased = true, .always_chosen = 1});
    // Far from where a sum that may be negative is 0:
    check({.top_k = 3, .score = score, .renormalize = true, .epsilon = 9, .weigh_biased = true});
    check({.top_k = 3, .score = score, .renormalize = true, .floor = 9, .weigh_biased = true});
  }
}

TEST(Gradients, OfWeightsThatSumToZeroAreThoseOfTheFormula) {
  Eigen::VectorXd dw(3), s(3), ds(3);
  dw << 1, 2, 4;
  s << 0.5, -1, 0.5;
  renormalize_backward(s, 1.0, 0.5, 0.0, dw, ds);
  const double along = (0.5 - 2 + 2) / 0.25;  // Σ dw·s / D², D = 0 + 0.5
  EXPECT_TRUE(ds.isApprox(Eigen::VectorXd((dw / 0.5).array() - along)));
}

TEST(Gradients, OfRoutersWithLimitedRoom) {
  for (const bool renormalize : {false, true}) {
    for (const double floor : {0.0, 0.3}) {
      const CapacityOptions options{.capacity = fixed_capacity(3), .renormalize = renormalize, .floor = floor};
      const MoeLayer layer(WithCapacity(random_router(4, 6, {.top_k = 2}, 45), options), random_bank(4, 6, 5, 46));
      expect_true_gradients(layer, 9, 47);
    }
  }
}

TEST(Gradients, OfMergedExpertsAreThoseOfWhatTheyWere) {
  for (const auto weight_on : {WeightOn::output, WeightOn::input}) {
    for (const Index top_k : {1, 2, 4}) {
      const auto router = random_router(5, 6, {.top_k = top_k, .renormalize = top_k > 1, .weight_on = weight_on}, 48);
      const MoeLayer layer(WithMergedExperts(router, {1, 0, 1, 1, 2}), random_bank(3, 6, 5, 49));
      for (const Index tokens : {0, 1, 7}) expect_true_gradients(layer, tokens, 50);
      const WithCapacity limited(WithMergedExperts(router, {1, 0, 1, 1, 2}),
                                 {.capacity = fixed_capacity(3), .renormalize = true});
      expect_true_gradients(MoeLayer(limited, random_bank(3, 6, 5, 49)), 7, 51);
      const WithMergedExperts around(WithCapacity(router, {.capacity = fixed_capacity(3)}), {1, 0, 1, 1, 2});
      expect_true_gradients(MoeLayer(around, random_bank(3, 6, 5, 49)), 7, 52);
    }
  }
}

TEST(Gradients, OfExpertsThatChoose) {
  expect_true_gradients(
      MoeLayer(ExpertChoice<double>(random_matrix<Weight<double>>(4, 6, 48)), random_bank(4, 6, 5, 49)), 12, 50);
}

TEST(Gradients, OfABalancedChoice) {
  for (const Index top_k : {1, 2}) {
    expect_true_gradients(
        MoeLayer(Sinkhorn<double>(random_matrix<Weight<double>>(4, 6, 51), {.top_k = top_k}), random_bank(4, 6, 5, 52)),
        12, 53);
  }
}

TEST(Gradients, ExpertsWithoutTokensGetNone) {
  auto router = random_router(4, 6, {.top_k = 1}, 27, true);
  router.bias() << 0, 100, 0, 0;
  const MoeLayer layer(router, random_bank(4, 6, 5, 28));
  const auto x = Random(29).matrix<Matrix<double>>(6, 9);
  auto gradients = gradients_of(layer, x, x);
  for (const auto& parameter : parameters(gradients.of_parameters)) {
    if (!parameter.name.starts_with("experts.")) continue;
    EXPECT_EQ(parameter.array().isZero(0), !parameter.name.starts_with("experts.1.")) << parameter.name;
  }
}

TEST(Backward, RefusesWhatDoesNotFit) {
  const MoeLayer layer(random_router(4, 6, {.top_k = 1}, 58), random_bank(4, 6, 5, 59));
  auto gradient = zeros_like(layer);
  auto tape = tape_of(layer);
  const auto x = random_matrix<Matrix<double>>(6, 9, 60);
  Matrix<double> y(6, 9), d_x = Matrix<double>::Zero(6, 9), narrow(6, 8), flat(5, 9);
  forward(layer, x, y, tape);
  const auto error = [&](const Matrix<double>& of_x, const Matrix<double>& of_d_y, Matrix<double>& of_d_x) {
    return test::error_of([&] { backward(layer, of_x, of_d_y, tape, of_d_x, gradient); });
  };
  EXPECT_EQ(error(x, y, flat), "backward: d_x beside x: y.rows() is 5, expected 6");
  EXPECT_EQ(error(x, narrow, d_x), "backward: d_x beside d_y: y.cols() is 9, expected 8");
  EXPECT_EQ(error(narrow, narrow, narrow), "backward: d_x beside x: y overlaps x");
  Matrix<double> other(6, 8);
  EXPECT_EQ(error(narrow, narrow, other), "backward: x.cols(), against that of forward(), is 8, expected 9");
}

}  // namespace
}  // namespace moe
