// What a step of forward and backward passes promises: its bits, and no allocations.
#include "allocations.hpp"

#include "moe/train.hpp"

#include <type_traits>
#include <vector>

#include <gtest/gtest.h>

#include "compare.hpp"
#include "laws/gradient_laws.hpp"
#include "moe/moe.hpp"
#include "random.hpp"
#include "train/factories.hpp"

namespace moe {
namespace {

using test::joined_experts;
using test::random_bank;
using test::random_ffns;
using test::random_matrix;
using test::random_router;
using test::random_soft_moe;
using test::residual_moe_of;
using test::same_bits;

TEST(Tape, ForwardWithATapeIsForwardToTheLastBit) {
  const auto check = [](const auto& layer) {
    using Scalar = typename std::decay_t<decltype(layer)>::Scalar;
    for (const Index tokens : {0, 1, 9, 70, 200}) {
      const auto x = random_matrix<Matrix<Scalar>>(layer.d_model(), tokens, 61);
      Matrix<Scalar> y(layer.d_model(), tokens);
      auto tape = tape_of(layer);
      forward(layer, x, y, tape);
      EXPECT_TRUE(same_bits(y, layer.forward(x))) << tokens;
    }
  };
  const MoeLayer bank(random_router<float>(4, 17, {.top_k = 2}, 62), random_bank<float>(4, 17, 101, 63, true));
  check(bank);
  check(MoeLayer(random_router(4, 17, {.top_k = 2}, 64), random_ffns<Relu>(4, 17, 21, true, 65)));
  check(WithSharedExpert(bank, random_bank<float>(1, 17, 33, 66), random_matrix<Eigen::RowVectorXf>(1, 17, 67)));
  check(DenseLayer(random_bank<float>(1, 17, 33, 68)));
  const MoeLayer plain(random_router<float>(4, 17, {.top_k = 2}, 86),
                       random_bank<float>(4, 17, 101, 87, true, 1, ReluSquared{}));
  check(WithSharedExpert(plain, random_bank<float>(1, 17, 33, 88, true, 1, Gelu{})));
  check(DenseLayer(random_bank<float>(1, 17, 33, 89, false, 1, Silu{})));
  check(random_soft_moe<float>(17, 3, 2, {.average_normalized = true}, true, 80));
  check(residual_moe_of(bank, 81));
  check(NormedOutput(bank, RmsNorm<float>(random_matrix<Eigen::VectorXf>(17, 1, 84))));
  check(AffineOutput(bank, 0.8f, random_matrix<Eigen::VectorXf>(17, 1, 83)));
  check(MoeLayer(random_router<float>(6, 17, {.top_k = 2}, 84), joined_experts(17, 85)));
}

TEST(Gradients, AWarmStepAllocatesNothing) {
  laws::expect_warm_steps_to_allocate_nothing(MoeLayer(
      random_router<float>(6, 40, {.top_k = 2, .renormalize = true}, 54), random_bank<float>(6, 40, 50, 55, true)));
  laws::expect_warm_steps_to_allocate_nothing(random_soft_moe<float>(40, 6, 2, {}, true, 54), {.sequence_length = 10});
  const MoeLayer joined(random_router<float>(6, 40, {.top_k = 2}, 55), joined_experts(40, 56));
  laws::expect_warm_steps_to_allocate_nothing(joined);
  laws::expect_warm_steps_to_allocate_nothing(residual_moe_of(joined, 57));
  laws::expect_warm_steps_to_allocate_nothing(AffineOutput(joined, 0.5f, Eigen::VectorXf::Ones(40)));
  laws::expect_warm_steps_to_allocate_nothing(DenseLayer(random_bank<float>(1, 40, 50, 58)));
  laws::expect_warm_steps_to_allocate_nothing(MoeLayer(random_router<float>(6, 40, {.top_k = 2}, 59),
                                                       random_bank<float>(6, 40, 50, 60, true, 1, ReluSquared{})));
}

TEST(Gradients, AreTheSameBitsForAnyNumberOfThreads) {
  laws::expect_the_same_bits_for_any_number_of_threads(
      MoeLayer(random_router<float>(6, 70, {.top_k = 2, .renormalize = true}, 30),
               random_bank<float>(6, 70, 90, 31, true, 0.1)));
  laws::expect_the_same_bits_for_any_number_of_threads(MoeLayer(
      random_router<float>(6, 70, {.top_k = 2}, 32), random_bank<float>(6, 70, 90, 33, true, 0.1, ReluSquared{})));
  for (const Index length : {0, 5}) {
    laws::expect_the_same_bits_for_any_number_of_threads(random_soft_moe<float>(70, 6, 2, {}, true, 34),
                                                         {.sequence_length = length});
  }
  const MoeLayer joined(random_router<float>(6, 70, {.top_k = 2}, 35), joined_experts(70, 36));
  laws::expect_the_same_bits_for_any_number_of_threads(joined);
  laws::expect_the_same_bits_for_any_number_of_threads(residual_moe_of(joined, 37));
}

}  // namespace
}  // namespace moe
