#include "laws/router_laws.hpp"

#include "moe/routers/shaped_top_k.hpp"

#include <cmath>
#include <limits>
#include <utility>
#include <vector>

#include "errors.hpp"
#include "moe/lora/merged.hpp"
#include "moe/lora/router.hpp"
#include "moe/routers/carried_top_k.hpp"
#include "moe/routers/cosine_top_k.hpp"
#include "naive.hpp"

namespace moe::laws {

constexpr Index law_experts = 11;
constexpr TopKOptions laguna = {.top_k = 3, .score = Score::sigmoid, .renormalize = true};

template <class Scalar>
Weight<Scalar> rows_for(Index rows, Index cols, unsigned seed) {
  return random_matrix<Weight<Scalar>>(rows, cols, seed, 3 / std::sqrt(double(cols)));
}

template <class Scalar>
struct CappedTopKs {
  static ShapedTopK<Scalar> make(Index d_model) {
    const auto numbers = [](unsigned seed) { return random_matrix<Vector<Scalar>>(law_experts, 1, seed); };
    return {
        rows_for<Scalar>(law_experts, d_model, 1), laguna, {.multiplier = 0.7, .soft_cap = 2}, numbers(2), numbers(3)};
  }
};
/// Any logits can be shaped, and what they read of side inputs reaches them.
struct ShapedCarriedTopKs {
  static auto make(Index d_model) {
    return LogitsRouter(ShapedLogits(CarriedLogits<float>(rows_for<float>(law_experts, d_model, 1),
                                                          rows_for<float>(law_experts, law_experts, 2)),
                                     {.soft_cap = 2}),
                        TopKChoice<float>(law_experts, {.top_k = 2}));
  }
  static SideInputs<float> side(Index first, Index count) {
    static const auto numbers = random_matrix<Matrix<float>>(law_experts, 64, 77, 2);
    return {.previous_logits = {numbers.data() + law_experts * first, std::size_t(law_experts * count)}};
  }
};
using Shaped = testing::Types<CappedTopKs<float>, CappedTopKs<double>, ShapedCarriedTopKs>;
INSTANTIATE_TYPED_TEST_SUITE_P(ShapedTopK, RouterLaws, Shaped);
INSTANTIATE_TYPED_TEST_SUITE_P(ShapedTopK, TokenChoiceLaws, Shaped);

const LogitShape shapes[] = {
    {}, {.multiplier = 0.1767766952966369}, {.soft_cap = 1.5}, {.multiplier = -2, .soft_cap = 30}};

template <class Scalar>
void expect_naive_twin(const LogitShape& shape, Index d_model, Index num_tokens) {
  const auto bias = random_matrix<Vector<Scalar>>(law_experts, 1, 2);
  const ShapedTopK<Scalar> router(rows_for<Scalar>(law_experts, d_model, 1), laguna, shape, bias);
  const auto x = random_matrix<Matrix<Scalar>>(d_model, num_tokens, 4);
  const auto routing = route(router, x);
  Eigen::MatrixXd expected = test::naive::product(test::naive::exact(router.weight()), test::naive::exact(x));
  for (Index t = 0; t < num_tokens; ++t) {
    for (Index e = 0; e < law_experts; ++e) {
      const double l = shape.multiplier * (expected(e, t) + double(bias(e)));
      expected(e, t) = shape.soft_cap > 0 ? shape.soft_cap * std::tanh(l / shape.soft_cap) : l;
    }
  }
  const Eigen::Map<const Matrix<Scalar>> logits(routing.logits.data(), law_experts, num_tokens);
  EXPECT_TRUE(is_close(logits, expected));
  for (Index t = 0; t < num_tokens; ++t) {
    const auto chosen = test::naive::choose({logits.col(t).begin(), logits.col(t).end()}, laguna);
    for (std::size_t k = 0; k < chosen.size(); ++k) {
      const auto r = std::size_t(t) * chosen.size() + k;
      EXPECT_EQ(routing.expert[r], chosen[k].expert);
      EXPECT_NEAR(double(routing.weight[r]), chosen[k].weight, test::tolerance<Scalar>(1));
    }
  }
}

TEST(ShapedTopK, EqualsItsNaiveTwin) {
  for (const LogitShape& shape : shapes) {
    for (const Index d_model : {1, 8, 17, 40}) {
      for (const Index num_tokens : token_counts) {
        expect_naive_twin<float>(shape, d_model, num_tokens);
        expect_naive_twin<double>(shape, d_model, num_tokens);
      }
    }
  }
}

TEST(ShapedTopK, WithoutAShapeIsLinearTopKToTheLastBit) {
  const auto x = random_matrix<Matrix<float>>(9, 20, 1);
  const auto weight = rows_for<float>(law_experts, 9, 2);
  const auto shaped = route(ShapedTopK<float>(weight, laguna, {}), x),
             linear = route(LinearTopK<float>(weight, laguna), x);
  EXPECT_TRUE(same_bits(as_vector(shaped.logits), as_vector(linear.logits)));
  EXPECT_EQ(shaped.expert, linear.expert);
  EXPECT_EQ(shaped.weight, linear.weight);
}

TEST(ShapedTopK, ACapIsReachedAtInfinityAndANotANumberStaysOne) {
  const auto nan = std::numeric_limits<float>::quiet_NaN(), inf = std::numeric_limits<float>::infinity();
  const ShapedTopK<float> router(Weight<float>::Zero(5, 1), {.top_k = 5, .score = Score::sigmoid}, {.soft_cap = 4},
                                 Eigen::VectorXf{{inf, -inf, nan, 0, 400}});
  const auto routing = route(router, Matrix<float>::Zero(1, 1));
  EXPECT_EQ(routing.expert, (std::vector<Index>{0, 4, 3, 1, 2}));
  EXPECT_EQ(routing.logits[0], 4);
  EXPECT_EQ(routing.logits[1], -4);
  EXPECT_TRUE(std::isnan(routing.logits[2]) && std::isnan(routing.weight[4]));
}

TEST(ShapedTopK, WithAnAdapterShapesWhatItAddsAndMergesIt) {
  const LogitShape shape{.multiplier = 0.5, .soft_cap = 2};
  auto router = with_lora(ShapedTopK<double>(rows_for<double>(law_experts, 9, 1), laguna, shape), {.rank = 3});
  const auto x = random_matrix<Matrix<double>>(9, 20, 2);
  const auto before = route(router, x);
  EXPECT_EQ(before.logits, route(merged(router), x).logits);  // B is 0
  router.logits().unshaped().adapter().b = rows_for<double>(law_experts, 3, 3);
  const auto adapted = route(router, x), together = route(merged(router), x);
  EXPECT_TRUE(is_close(as_vector(adapted.logits), as_vector(together.logits)));
  EXPECT_EQ(adapted.expert, together.expert);
  EXPECT_GT((as_vector(adapted.logits) - as_vector(before.logits)).norm(), 1);
  EXPECT_LE(as_vector(adapted.logits).cwiseAbs().maxCoeff(), 2);
}

TEST(ShapedTopK, RefusesWhatDoesNotFitWithTheNumbers) {
  const auto complaint = [](const LogitShape& shape, Index top_k = 1, Index bias = 0) {
    return test::error_of(
        [&] { ShapedTopK<float>(Weight<float>::Zero(6, 4), {.top_k = top_k}, shape, Eigen::VectorXf::Zero(bias)); });
  };
  EXPECT_EQ(complaint({.soft_cap = 30}), "no error");
  EXPECT_EQ(complaint({.soft_cap = -1}), "ShapedTopK: soft_cap is -1.000000, expected 0 or more, and finite");
  EXPECT_EQ(complaint({.soft_cap = INFINITY}), "ShapedTopK: soft_cap is inf, expected 0 or more, and finite");
  EXPECT_EQ(complaint({.multiplier = INFINITY}), "ShapedTopK: multiplier is inf, expected a finite number");
  EXPECT_EQ(complaint({}, 7), "ShapedTopK: top_k is 7, expected 1 to 6");
  EXPECT_EQ(complaint({}, 1, 5), "ShapedTopK: bias.size() is 5, expected 6");
}

}  // namespace moe::laws
