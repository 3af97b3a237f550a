// Shared experts of any kind, and what routed and shared experts answer in one mean: forward, backward, merged.
#include "allocations.hpp"

#include <cmath>
#include <type_traits>
#include <vector>

#include <gtest/gtest.h>

#include "compare.hpp"
#include "latent_factories.hpp"
#include "laws/gradient_laws.hpp"
#include "moe/moe.hpp"
#include "moe/train.hpp"
#include "normed_factories.hpp"
#include "random.hpp"
#include "train/factories.hpp"

namespace moe {
namespace {

using laws::expect_true_gradients;
using test::is_close;
using test::random_bank;
using test::random_ffns;
using test::random_matrix;
using test::random_router;

constexpr Index d = 9;

auto sparse() { return MoeLayer(random_router(4, d, {.top_k = 2}, 1), random_bank(4, d, 5, 2)); }
Matrix<double> tokens(Index count) { return random_matrix<Matrix<double>>(d, count, 3); }

/// A shared expert of each kind: banks whose activations are clamped where random numbers meet it, lists, wrapped ones.
template <class Check>
void for_each_shared_expert(const Check& check) {
  check(random_bank(1, d, 7, 4, false, 1, ClampedInputGlu<Silu>{.limit = 0.5}));
  check(random_bank(1, d, 7, 4, false, 1, ClampedOutputGlu<Silu>{.limit = 0.25}));
  check(random_bank(1, d, 7, 4, true, 1, GptOssGlu{.limit = 0.5, .alpha = 1.25F}));
  check(ExpertList(random_ffns<ReluSquared>(1, d, 7, true, 5)));
  check(test::random_normed(random_bank(1, d, 7, 6), 7, {.epsilon = 0.1}));
  check(test::random_latent<double>(d, random_bank(1, 6, 7, 8), 9));
  check(Frozen(random_bank(1, d, 7, 4, false, 1, ClampedInputGlu<Silu>{.limit = 0.5})));
}

TEST(SharedExperts, MayBeOfAnyKind) {
  const auto gate = random_matrix<Eigen::RowVectorXd>(1, d, 10);
  for_each_shared_expert([&](const auto& shared) {
    for (const Index n : {0, 1, 17, 40}) {
      const auto x = tokens(n);
      const Matrix<double> routed = sparse().forward(x), answer = DenseLayer(shared).forward(x);
      EXPECT_TRUE(is_close(WithSharedExpert(sparse(), shared).forward(x), (routed + answer).eval())) << n;
      Matrix<double> gated = routed;
      for (Index t = 0; t < n; ++t) gated.col(t) += answer.col(t) / (1 + std::exp(-gate.dot(x.col(t))));
      EXPECT_TRUE(is_close(WithSharedExpert(sparse(), shared, gate).forward(x), gated)) << n;
    }
    expect_true_gradients(WithSharedExpert(sparse(), shared), 9, 11, 20);
    expect_true_gradients(WithSharedExpert(sparse(), shared, gate), 9, 12, 20);
  });
}

TEST(SharedExperts, KeepTheirActivationAndItsLimitWhereAdaptersAreMerged) {
  const auto check = [](auto act) {
    const auto base = random_bank(1, d, 7, 13, true, 1, act);
    WithSharedExpert layer(sparse(), with_lora(base, {.rank = 2}));
    unsigned seed = 14;
    for (const auto& named : named_adapters("", layer)) {
      named.adapter->b = random_matrix<Weight<double>>(named.adapter->out(), named.adapter->rank(), ++seed);
    }
    expect_true_gradients(layer, 9, 20, 20);
    const auto plain = merged(layer);
    static_assert(std::is_same_v<std::remove_cvref_t<decltype(plain.shared())>, GatedFfnBank<double, decltype(act)>>);
    EXPECT_EQ(plain.shared().activation().limit, act.limit);
    for (const Index n : {1, 40}) EXPECT_TRUE(is_close(plain.forward(tokens(n)), layer.forward(tokens(n))));
  };
  check(ClampedInputGlu<Silu>{.limit = 0.5});
  check(ClampedOutputGlu<Silu>{.limit = 0.25});
  check(GptOssGlu{.limit = 0.5, .alpha = 1.25F});
}

/// Cohere 2's "average".
TEST(SharedExperts, AreAveragedWithTheRoutedByAScaleOfTheOutput) {
  const auto shared = random_bank(1, d, 7, 21);
  const moe::AffineOutput average(WithSharedExpert(sparse(), shared), 0.5);
  for (const Index n : {0, 1, 17, 40}) {
    const auto x = tokens(n);
    EXPECT_TRUE(is_close(average.forward(x), ((sparse().forward(x) + DenseLayer(shared).forward(x)) / 2).eval())) << n;
    expect_true_gradients(average, n, 22, 20);
  }
}

/// With no weight a ResidualMoe is a mean of constant shares, and its bias says which: softmax(0, log 3) = (¼, ¾).
TEST(SharedExperts, AreInAnyMeanWithTheRoutedByTheBiasOfTheirCoefficients) {
  const auto shared = random_bank(1, d, 7, 23);
  const moe::ResidualMoe mean(sparse(), shared, Weight<double>::Zero(2, d), Eigen::Vector2d(0, std::log(3)));
  for (const Index n : {0, 1, 17, 40}) {
    const auto x = tokens(n);
    const Matrix<double> expected = 0.25 * sparse().forward(x) + 0.75 * DenseLayer(shared).forward(x);
    EXPECT_TRUE(is_close(mean.forward(x), expected)) << n;
    expect_true_gradients(mean, n, 24, 20);
  }
}

}  // namespace
}  // namespace moe
