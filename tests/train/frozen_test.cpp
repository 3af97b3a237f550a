// Gradients that pass through what does not learn.
#include "allocations.hpp"

#include "moe/train/frozen.hpp"

#include <memory>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "compare.hpp"
#include "errors.hpp"
#include "laws/gradient_laws.hpp"
#include "moe/moe.hpp"
#include "moe/train.hpp"
#include "random.hpp"

namespace moe {
namespace {

using laws::expect_true_gradients;
using laws::gradients_of;
using test::random_matrix;
using test::same_bits;

template <class W>
using Bank = GatedFfnBank<W>;

template <class Scalar>
auto router_of(Index experts, Index d_model, unsigned seed, WeightOn weight_on = WeightOn::output) {
  return LinearTopK<Scalar>(random_weight<Scalar>(experts, d_model, seed),
                            {.top_k = 2, .renormalize = true, .weight_on = weight_on});
}

TEST(Frozen, LetsTheGradientsOfAllOthersThrough) {
  for (const WeightOn weight_on : {WeightOn::output, WeightOn::input}) {
    const auto router = router_of<double>(4, 9, 1, weight_on);
    const auto bank = random_bank<double>(4, 9, 17, 2);
    for (const Index tokens : {0, 1, 12}) {
      expect_true_gradients(MoeLayer(router, Frozen(bank)), tokens, 3);
      expect_true_gradients(MoeLayer(Frozen(router), bank), tokens, 3);
      expect_true_gradients(MoeLayer(Frozen(router), Frozen(bank)), tokens, 3);
    }
    const MoeLayer sparse(router, bank);
    expect_true_gradients(WithSharedExpert(sparse, Frozen(random_bank<double>(1, 9, 7, 4))), 12, 3);
  }
  const Frozen choice(ExpertChoice<double>(random_matrix<Weight<double>>(4, 6, 48)));
  const Frozen balanced(Sinkhorn<double>(random_matrix<Weight<double>>(4, 6, 51), {.top_k = 2}));
  const Frozen limited(
      WithCapacity(router_of<double>(4, 6, 5), {.capacity = fixed_capacity(3), .renormalize = true, .floor = 0.3}));
  const auto bank = random_bank<double>(4, 6, 5, 6);
  expect_true_gradients(MoeLayer(choice, bank), 12, 7);
  expect_true_gradients(MoeLayer(balanced, bank), 12, 7);
  expect_true_gradients(MoeLayer(limited, bank), 12, 7);
}

TEST(Frozen, ListsOfExpertsMayBeFrozenToo) {
  std::vector<Ffn<double, Silu>> experts;
  for (unsigned e = 0; e < 4; ++e) {
    experts.push_back({.w_in = random_matrix<Weight<double>>(11, 6, 8 + e),
                       .w_out = random_matrix<Weight<double>>(6, 11, 12 + e),
                       .b_in = random_matrix<Eigen::VectorXd>(11, 1, 16 + e)});
  }
  expect_true_gradients(MoeLayer(router_of<double>(4, 6, 5), Frozen(ExpertList(experts))), 12, 9);
}

TEST(Frozen, PassesTheSameBitsAsOneThatLearns) {
  const auto router = router_of<float>(4, 33, 10);
  const auto bank = random_bank<float>(4, 33, 50, 11);
  const auto x = random_matrix<Matrix<float>>(33, 60, 12), c = random_matrix<Matrix<float>>(33, 60, 13);
  auto learning = gradients_of(MoeLayer(router, bank), x, c);
  auto frozen = gradients_of(MoeLayer(router, Frozen(bank)), x, c);
  EXPECT_TRUE(same_bits(frozen.of_x, learning.of_x));
  EXPECT_TRUE(same_bits(frozen.of_parameters.router().weight(), learning.of_parameters.router().weight()));
}

/// The bank as it would lie in a mapped file, its rows further apart than they are long.
template <class W>
Bank<W> mapped(const Bank<W>& bank) {
  const auto stack = [](const WeightStack<W>& from) {
    auto memory = std::make_shared<std::vector<Weight<W>>>();
    std::vector<const W*> experts;
    for (Index e = 0; e < from.num_experts(); ++e) {
      Weight<W> wide = Weight<W>::Constant(from.rows(), from.cols() + 3, W(1e4f));
      wide.leftCols(from.cols()) = from[e];
      memory->push_back(std::move(wide));
    }
    for (const auto& weight : *memory) experts.push_back(weight.data());
    return WeightStack<W>(experts, from.rows(), from.cols(), from.cols() + 3, memory);
  };
  return {stack(bank.w_gate()), stack(bank.w_up()), stack(bank.w_down())};
}

template <class W>
Bank<float> widened(const Bank<W>& bank) {
  const auto stack = [](const WeightStack<W>& from) {
    WeightStack<float> to(from.num_experts(), from.rows(), from.cols());
    for (Index e = 0; e < from.num_experts(); ++e) to.owned(e) = from[e].template cast<float>();
    return to;
  };
  return {stack(bank.w_gate()), stack(bank.w_up()), stack(bank.w_down())};
}

template <class W>
class FrozenIn16Bits : public testing::Test {};
using Types = testing::Types<bfloat16, float16>;
TYPED_TEST_SUITE(FrozenIn16Bits, Types);

TYPED_TEST(FrozenIn16Bits, MappedWeightsAreReadWhereTheyLie) {
  using W = TypeParam;
  for (const Index d_model : {1, 7, 16, 33}) {
    for (const Index tokens : {0, 1, 9, 70}) {
      const auto router = router_of<float>(5, d_model, 14);
      const auto bank = random_bank<W>(5, d_model, 2 * d_model + 1, 15);
      const auto x = random_matrix<Matrix<float>>(d_model, tokens, 16);
      const auto c = random_matrix<Matrix<float>>(d_model, tokens, 17);
      auto expected = gradients_of(MoeLayer(router, Frozen(widened(bank))), x, c);
      auto got = gradients_of(MoeLayer(router, Frozen(mapped(bank))), x, c);
      EXPECT_TRUE(test::is_close(got.of_x, expected.of_x)) << d_model << ", " << tokens;
      EXPECT_TRUE(test::is_close(got.of_parameters.router().weight(), expected.of_parameters.router().weight()))
          << d_model << ", " << tokens;
    }
  }
}

TEST(Frozen, TakesNoMemoryInAGradient) {
  const MoeLayer layer(router_of<float>(4, 64, 18), Frozen(random_bank<float>(4, 64, 128, 19)));
  auto gradient = layer;
  const auto copy = [&] { gradient = zeros_like(layer); };
  copy();
  EXPECT_EQ(&*gradient.experts(), &*layer.experts());
  const auto listed = parameters(gradient);
  ASSERT_EQ(listed.size(), 1u);
  EXPECT_EQ(listed[0].name, "gate.weight");
}

TEST(Frozen, AWarmStepAllocatesNothing) {
  laws::expect_warm_steps_to_allocate_nothing(
      MoeLayer(Frozen(router_of<float>(6, 40, 20)), Frozen(random_bank<bfloat16>(6, 40, 50, 21))));
}

TEST(Parameters, ThatCannotBeWrittenAreNamedUnlessTheyAreFrozen) {
  const std::string cannot = " cannot learn: it is mapped, or narrower than activations";
  MoeLayer of_16_bits(router_of<float>(4, 6, 24), random_bank<bfloat16>(4, 6, 5, 25));
  EXPECT_EQ(test::error_of([&] { parameters(of_16_bits); }), "parameters: experts.0.gate_proj.weight" + cannot);
  MoeLayer of_a_file(router_of<float>(4, 6, 24), mapped(random_bank<float>(4, 6, 5, 25)));
  EXPECT_EQ(test::error_of([&] { parameters(of_a_file); }), "parameters: experts.0.gate_proj.weight" + cannot);

  MoeLayer frozen(router_of<float>(4, 6, 24), Frozen(mapped(random_bank<bfloat16>(4, 6, 5, 25))));
  EXPECT_EQ(parameters(frozen).size(), 1u);
  const auto stays = frozen_parameters(frozen);
  ASSERT_EQ(stays.size(), 12u);
  EXPECT_EQ(stays[5].name, "experts.1.down_proj.weight");
  EXPECT_EQ(stays[5].rows, 6);
  EXPECT_EQ(stays[5].cols, 5);
}

}  // namespace
}  // namespace moe
