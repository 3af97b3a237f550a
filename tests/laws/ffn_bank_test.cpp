#include "laws/experts_laws.hpp"

#include <vector>

#include "errors.hpp"
#include "expert_factories.hpp"
#include "moe/core/parameters.hpp"

namespace moe::laws {

using Plain = testing::Types<test::FfnBanks<double, Gelu, true>, test::FfnBanks<float, ReluSquared>,
                             test::FfnBanks<bfloat16, Silu, true>, test::FfnBanks<float16, Relu>>;
INSTANTIATE_TYPED_TEST_SUITE_P(Plain, ExpertsLaws, Plain);

/// Each token's answers in the arithmetic of few tokens, and of many.
template <class Bank, class List>
void expect_the_same_bits(const Bank& bank, const List& list, Index d_model, Index num_tokens) {
  using Scalar = typename Bank::Scalar;
  const auto x = random_matrix<Matrix<Scalar>>(d_model, num_tokens, 1);
  Matrix<Scalar> y(d_model, num_tokens), expected = y;
  for (const bool batch_invariant : {false, true}) {
    Workspace<Scalar> ws;
    ws.numerics.batch_invariant = batch_invariant;
    bank.forward(x, y, ws);
    list.forward(x, expected, ws);
    EXPECT_TRUE(batch_invariant ? same_bits(y, expected) : is_close(y, expected))
        << d_model << " wide, " << num_tokens << " tokens";
  }
}

template <class Factory>
class FfnBankOf : public testing::Test {};
template <class W_, class Act_>
struct Case {
  using W = W_;
  using Act = Act_;
};
using Cases = testing::Types<Case<double, GeluTanh>, Case<float, ReluSquared>, Case<bfloat16, Gelu>,
                             Case<float16, Silu>, Case<float, Relu>>;
TYPED_TEST_SUITE(FfnBankOf, Cases);

TYPED_TEST(FfnBankOf, ExpertsIsTheListOfTheirFfns) {
  using W = typename TypeParam::W;
  using Act = typename TypeParam::Act;
  using Scalar = ActivationScalar<W>;
  const auto seeds = seeds_from(1, 5);
  for (const Index d_model : sizes) {
    for (const WeightOn weight_on : {WeightOn::output, WeightOn::input}) {
      const auto router = router_for<Scalar>(d_model, 5, 3, weight_on);
      const MoeLayer bank(router, test::FfnBanks<W, Act, true>::make(d_model, seeds));
      const MoeLayer list(router, ListOf<test::Ffns<W, Act>>::make(d_model, seeds));
      for (const Index num_tokens : token_counts) expect_the_same_bits(bank, list, d_model, num_tokens);
    }
  }
}

/// As rows of a fused checkpoint may lie, off any alignment.
TEST(FfnBank, MappedIsTheSameAsOwnedToTheBit) {
  for (const Index d_model : sizes) {
    const auto seeds = seeds_from(1, 3);
    const auto router = router_for<float>(d_model, 3, 2);
    const auto owned = test::FfnBanks<bfloat16, ReluSquared, true>::make(d_model, seeds);
    std::vector<Weight<bfloat16>> memory;
    const auto elsewhere = [&](const WeightStack<bfloat16>& stack, Index stride) {
      std::vector<const bfloat16*> at;
      for (Index e = 0; e < stack.num_experts(); ++e) {
        memory.push_back(Weight<bfloat16>::Constant(stack.rows() + 1, stride, bfloat16(77)));
        memory.back().block(0, 1, stack.rows(), stack.cols()) = stack[e];
        at.push_back(memory.back().data() + 1);
      }
      return WeightStack<bfloat16>(at, stack.rows(), stack.cols(), stride);
    };
    const FfnBank<bfloat16, ReluSquared> mapped(elsewhere(owned.w_up(), d_model + 3),
                                                elsewhere(owned.w_down(), owned.d_ff() + 5), {}, owned.biases());
    const auto copied = moe::owned(mapped);
    EXPECT_TRUE(copied.w_up().is_owned() && !mapped.w_up().is_owned());
    for (const Index num_tokens : token_counts) {
      const auto x = random_matrix<Matrix<float>>(d_model, num_tokens, 1);
      const auto y = MoeLayer(router, owned).forward(x);
      EXPECT_TRUE(same_bits(MoeLayer(router, mapped).forward(x), y)) << d_model << ", " << num_tokens;
      EXPECT_TRUE(same_bits(MoeLayer(router, copied).forward(x), y)) << d_model << ", " << num_tokens;
    }
  }
}

TEST(FfnBank, NamesWhatAnExpertHas) {
  const auto names = [](auto bank) {
    std::vector<std::string> all;
    for (const auto& parameter : parameters(bank)) all.push_back(parameter.name);
    return all;
  };
  const unsigned seed[] = {1};
  EXPECT_EQ(names(test::FfnBanks<float>::make(5, seed)),
            (std::vector<std::string>{"0.up_proj.weight", "0.down_proj.weight"}));
  EXPECT_EQ(names(test::FfnBanks<float, Relu, true>::make(5, seed)),
            (std::vector<std::string>{"0.up_proj.weight", "0.up_proj.bias", "0.down_proj.weight", "0.down_proj.bias"}));
}

TEST(FfnBank, RefusesWhatDoesNotFitWithBothNumbers) {
  using Bank = FfnBank<float, Relu>;
  const auto complaint = [](const WeightStack<float>& up, const WeightStack<float>& down,
                            FfnBiases<float> biases = {}) {
    return test::error_of([&] { Bank(up, down, {}, biases); });
  };
  const WeightStack<float> in(3, 9, 5), out(3, 5, 9);
  const Matrix<float> of_up(9, 3), of_down(5, 3);
  EXPECT_EQ(complaint(in, out, {.up = of_up, .down = of_down}), "no error");
  EXPECT_EQ(complaint({0, 9, 5}, {0, 5, 9}), "FfnBank: needs at least one expert");
  EXPECT_EQ(complaint(in, {2, 5, 9}), "FfnBank: w_down.num_experts() is 2, expected 3");
  EXPECT_EQ(complaint(in, {3, 6, 9}), "FfnBank: w_down.rows() is 6, expected 5");
  EXPECT_EQ(complaint(in, {3, 5, 8}), "FfnBank: w_down.cols() is 8, expected 9");
  EXPECT_EQ(complaint(in, out, {of_up, of_down}), "FfnBank: biases.gate.rows() is 9, expected 0");
  EXPECT_EQ(complaint(in, out, {.up = of_down}), "FfnBank: biases.up.rows() is 5, expected 9");
  EXPECT_EQ(complaint(in, out, {.down = Matrix<float>(5, 2)}), "FfnBank: biases.down.cols() is 2, expected 3");
}

}  // namespace moe::laws
