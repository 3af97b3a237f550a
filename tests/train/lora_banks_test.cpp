// Adapters beside banks of every weight: what they add, and that they can be merged.
#include "allocations.hpp"

#include "moe/lora/bank.hpp"

#include <limits>
#include <type_traits>

#include <gtest/gtest.h>

#include "compare.hpp"
#include "moe/moe.hpp"
#include "moe/train.hpp"
#include "random.hpp"
#include "train/lora_factories.hpp"

namespace moe {
namespace {

using test::bank_with_lora;
using test::is_close;
using test::mixed_ranks;
using test::random_matrix;
using test::router_of;
using test::same_bits;
using test::with_random_adapters;

/// The definition: each weight plus scale·B·A, as a whole matrix.
template <class W>
auto naive_twin(const LoraBank<W>& bank) {
  using Scalar = ActivationScalar<W>;
  const auto with_deltas = [&](const WeightStack<W>& weights, Index matrix) {
    WeightStack<Scalar> sum(weights.num_experts(), weights.rows(), weights.cols());
    for (Index e = 0; e < weights.num_experts(); ++e) {
      const Adapter<Scalar>& adapter = bank.adapters()[std::size_t(e)][matrix];
      sum.owned(e) = weights[e].template cast<Scalar>();
      for (Index k = 0; k < adapter.rank(); ++k) sum.owned(e) += adapter.scale() * adapter.b.col(k) * adapter.a.row(k);
    }
    return sum;
  };
  const auto& base = bank.base();
  return GatedFfnBank<Scalar>(with_deltas(base.w_gate(), 0), with_deltas(base.w_up(), 1), with_deltas(base.w_down(), 2),
                              base.activation(), base.biases());
}

template <class W>
class LoraBanks : public testing::Test {};
using Types = testing::Types<double, float, bfloat16, float16>;
TYPED_TEST_SUITE(LoraBanks, Types);

constexpr Index token_counts[] = {0, 1, 2, 15, 16, 17, 40, 200};

TYPED_TEST(LoraBanks, ComputeWhatWeightsWithTheirDeltasDo) {
  using Scalar = ActivationScalar<TypeParam>;
  for (const Index d_model : {1, 7, 16, 33}) {
    for (const WeightOn weight_on : {WeightOn::output, WeightOn::input}) {
      const auto router = router_of<Scalar>(4, d_model, 21, weight_on);
      const auto bank =
          bank_with_lora<TypeParam>(4, d_model, 2 * d_model + 1, {.expert_ranks = mixed_ranks, .alpha = 3}, 22);
      const MoeLayer adapted(router, bank);
      const MoeLayer expected(router, naive_twin(bank));
      for (const Index tokens : token_counts) {
        const auto x = random_matrix<Matrix<Scalar>>(d_model, tokens, 23);
        EXPECT_TRUE(is_close(adapted.forward(x), expected.forward(x))) << d_model << ", " << tokens;
      }
    }
  }
}

TYPED_TEST(LoraBanks, ThatAddNothingAreTheBankToTheLastBit) {
  using Scalar = ActivationScalar<TypeParam>;
  for (const Index d_model : {1, 7, 16, 33}) {
    const auto bank = random_bank<TypeParam>(4, d_model, 2 * d_model + 1, 24);
    const auto router = router_of<Scalar>(4, d_model, 25);
    const MoeLayer plain(router, bank);
    const MoeLayer fresh(with_lora(router, {.rank = 3}), with_lora(bank, {.expert_ranks = mixed_ranks}));
    MoeLayer none(with_lora(router, {.rank = 0}), with_lora(bank, {.rank = 0}));
    EXPECT_TRUE(parameters(none).empty());
    for (const Index tokens : token_counts) {
      const auto x = random_matrix<Matrix<Scalar>>(d_model, tokens, 26);
      EXPECT_TRUE(same_bits(fresh.forward(x), plain.forward(x))) << d_model << ", " << tokens;
      EXPECT_TRUE(same_bits(none.forward(x), plain.forward(x))) << d_model << ", " << tokens;
    }
  }
}

TYPED_TEST(LoraBanks, LeaveExpertsWithoutAdaptersAsTheyAre) {
  using Scalar = ActivationScalar<TypeParam>;
  const Index d_model = 33, tokens = 200;
  auto router = router_of<Scalar>(4, d_model, 27);
  const auto x = random_matrix<Matrix<Scalar>>(d_model, tokens, 28);
  const auto bank = bank_with_lora<TypeParam>(4, d_model, 50, {.expert_ranks = {0, 2, 0, 3}}, 29);
  const MoeLayer adapted(router, bank);
  Matrix<Scalar> y(d_model, tokens);
  Workspace<Scalar> ws;
  adapted.forward(x, y, ws);
  const Matrix<Scalar> plain = MoeLayer(router, bank.base()).forward(x);
  Index untouched = 0;
  for (Index t = 0; t < tokens; ++t) {
    const Index first = ws.routing.expert[std::size_t(2 * t)], second = ws.routing.expert[std::size_t(2 * t + 1)];
    const bool meets = first % 2 == 1 || second % 2 == 1;
    untouched += !meets;
    EXPECT_EQ(bool(same_bits(y.col(t), plain.col(t))), !meets) << t;
  }
  EXPECT_GT(untouched, 0);
  EXPECT_LT(untouched, tokens);
}

/// Of this type of weight, relative to the largest.
template <class W>
constexpr double rounding = std::is_same_v<W, bfloat16>  ? 0x1p-8
                            : std::is_same_v<W, float16> ? 0x1p-11
                                                         : double(std::numeric_limits<W>::epsilon());

TYPED_TEST(LoraBanks, MergedComputeTheSameAndCanBeTakenApart) {
  using W = TypeParam;
  using Scalar = ActivationScalar<W>;
  const auto bank = bank_with_lora<W>(4, 16, 33, {.expert_ranks = mixed_ranks}, 30);
  const auto sum = merged(bank);
  auto taken_apart = sum;
  unmerge(bank.adapters(), taken_apart);
  const auto expected = naive_twin(bank);
  const auto check = [&](const WeightStack<W>& got, const WeightStack<Scalar>& exact, const WeightStack<W>& apart,
                         const WeightStack<W>& base) {
    for (Index e = 0; e < 4; ++e) {
      const auto size = Scalar(exact[e].cwiseAbs().maxCoeff());
      const auto off = [&](const auto& a, const auto& b) {
        return double((a.template cast<Scalar>() - b.template cast<Scalar>()).cwiseAbs().maxCoeff() / size);
      };
      EXPECT_LE(off(got[e], exact[e]), 4 * rounding<W>) << e;
      EXPECT_LE(off(apart[e], base[e]), 4 * rounding<W>) << e;
      EXPECT_EQ(bool(same_bits(got[e], base[e])), e == 0) << e;  // the one of rank 0
    }
  };
  check(sum.w_gate(), expected.w_gate(), taken_apart.w_gate(), bank.base().w_gate());
  check(sum.w_up(), expected.w_up(), taken_apart.w_up(), bank.base().w_up());
  check(sum.w_down(), expected.w_down(), taken_apart.w_down(), bank.base().w_down());
}

TYPED_TEST(LoraBanks, OfAMergedLayerComputeTheSame) {
  using W = TypeParam;
  using Scalar = ActivationScalar<W>;
  const auto x = random_matrix<Matrix<Scalar>>(16, 40, 33);
  const auto check = [&](const auto& adapted) {
    const auto plain = merged(adapted);
    static_assert(!std::is_same_v<std::decay_t<decltype(plain)>, std::decay_t<decltype(adapted)>>);
    const Matrix<Scalar> y = adapted.forward(x);
    EXPECT_LE(double((plain.forward(x) - y).norm() / y.norm()), 64 * rounding<W>);
  };
  const auto router = with_random_adapters(with_lora(router_of<Scalar>(4, 16, 31), {.rank = 2}), 32);
  const auto bank = bank_with_lora<W>(4, 16, 33, {.expert_ranks = mixed_ranks}, 30);
  const auto shared = bank_with_lora<W>(1, 16, 33, {.rank = 3}, 56);
  check(MoeLayer(router, bank));
  check(MoeLayer(WithCapacity(router, {.capacity = fixed_capacity(9)}), random_bank<W>(4, 16, 33, 57)));
  check(DenseLayer(shared));
  const Eigen::Matrix<Scalar, 1, Eigen::Dynamic> gate =
      random_matrix<Eigen::Matrix<Scalar, 1, Eigen::Dynamic>>(1, 16, 58);
  check(WithSharedExpert(MoeLayer(router, bank), shared, gate));
}

}  // namespace
}  // namespace moe
