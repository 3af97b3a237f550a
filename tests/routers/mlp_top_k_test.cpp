#include "laws/router_laws.hpp"

#include "moe/routers/mlp_top_k.hpp"

#include <cmath>
#include <functional>
#include <string>
#include <vector>

#include "errors.hpp"
#include "mlp_router_factory.hpp"
#include "moe/core/parameters.hpp"
#include "moe/routers/shaped_top_k.hpp"
#include "naive.hpp"

namespace moe::laws {

using test::random_mlp_router;
using test::naive::MatrixD;

constexpr Index law_experts = 11, law_state = 9;

template <class Scalar>
std::span<const Scalar> span_of(const Matrix<Scalar>& numbers) {
  return {numbers.data(), std::size_t(numbers.size())};
}

template <class Scalar>
struct MlpTopKs {
  static MlpTopK<Scalar> make(Index d_model) {
    return {random_mlp_router<Scalar>(law_experts, d_model, law_state, 1),
            {.top_k = 2},
            random_matrix<Vector<Scalar>>(law_experts, 1, 2, 0.1)};
  }
  static SideInputs<Scalar> side(Index first, Index count) {
    static const auto states = random_matrix<Matrix<Scalar>>(law_state, 64, 77);
    return {.previous_state =
                span_of<Scalar>(states).subspan(std::size_t(law_state * first), std::size_t(law_state * count))};
  }
};
struct FirstMlpTopKs {
  static MlpTopK<float> make(Index d_model) {
    return {random_mlp_router<float>(law_experts, d_model, law_state, 1, /*hears=*/false, /*biases=*/false), {}};
  }
};
using Mlps = testing::Types<MlpTopKs<float>, MlpTopKs<double>, FirstMlpTopKs>;
INSTANTIATE_TYPED_TEST_SUITE_P(MlpTopK, RouterLaws, Mlps);
INSTANTIATE_TYPED_TEST_SUITE_P(MlpTopK, TokenChoiceLaws, Mlps);

struct Naive {
  MatrixD state, logits;
};

template <class Scalar>
Naive naive_mlp(const MlpRouterWeights<Scalar>& w, const MatrixD& x, const MatrixD& previous, double epsilon) {
  const auto layer = [](const Weight<Scalar>& weight, const Vector<Scalar>& bias, const MatrixD& from) {
    MatrixD to = test::naive::product(test::naive::exact(weight), from);
    for (Index t = 0; t < to.cols() && bias.size() > 0; ++t) {
      for (Index i = 0; i < to.rows(); ++i) to(i, t) += double(bias(i));
    }
    return to;
  };
  Naive all;
  all.state = layer(w.down, w.down_bias, x);
  for (Index t = 0; t < previous.cols(); ++t) {
    for (Index i = 0; i < previous.rows(); ++i) all.state(i, t) += double(w.state_scale(i)) * previous(i, t);
  }
  MatrixD hidden = all.state;
  for (Index t = 0; t < hidden.cols(); ++t) {
    double squares = 0;
    for (Index i = 0; i < hidden.rows(); ++i) squares += hidden(i, t) * hidden(i, t);
    for (Index i = 0; i < hidden.rows(); ++i) {
      hidden(i, t) *= double(w.norm_scale(i)) / std::sqrt(squares / double(hidden.rows()) + epsilon);
    }
  }
  hidden = layer(w.fc1, w.fc1_bias, hidden).unaryExpr(std::function(test::naive::gelu));
  hidden = layer(w.fc2, w.fc2_bias, hidden).unaryExpr(std::function(test::naive::gelu));
  all.logits = layer(w.out, {}, hidden);
  return all;
}

template <class Scalar>
void expect_naive_twin(Index d_model, Index state_size, Index num_tokens, bool hears, bool biases, bool is_first) {
  const double epsilon = 0.01;  // rounding errors do not grow by more than ten where a state is small
  const TopKOptions options{.top_k = 2};
  const auto selection_bias = random_matrix<Vector<Scalar>>(law_experts, 1, 2, 0.1);
  const MlpTopK<Scalar> router(random_mlp_router<Scalar>(law_experts, d_model, state_size, 1, hears, biases), options,
                               selection_bias, epsilon);
  const auto x = random_matrix<Matrix<Scalar>>(d_model, num_tokens, 4);
  const auto previous = random_matrix<Matrix<Scalar>>(state_size, is_first ? 0 : num_tokens, 5);
  const auto routing = route(router, {x, {.previous_state = span_of<Scalar>(previous)}});
  const auto expected = naive_mlp(router.logits().weights(), test::naive::exact(x),
                                  hears ? test::naive::exact(previous) : MatrixD(state_size, 0), epsilon);
  const Eigen::Map<const Matrix<Scalar>> state(routing.state.data(), state_size, num_tokens),
      logits(routing.logits.data(), law_experts, num_tokens);
  ASSERT_EQ(Index(routing.state.size()), state.size());
  EXPECT_TRUE(is_close(state, expected.state));
  const double off = num_tokens > 0 ? (logits.template cast<double>() - expected.logits).cwiseAbs().maxCoeff() : 0;
  EXPECT_LE(off, 4 * test::tolerance<Scalar>(expected.logits.size() > 0 ? expected.logits.cwiseAbs().maxCoeff() : 0))
      << d_model << " wide, state of " << state_size;
  const std::vector<double> bias(selection_bias.begin(), selection_bias.end());
  for (Index t = 0; t < num_tokens; ++t) {
    const auto chosen = test::naive::choose({logits.col(t).begin(), logits.col(t).end()}, options, bias);
    for (std::size_t k = 0; k < chosen.size(); ++k) {
      EXPECT_EQ(routing.expert[std::size_t(t) * 2 + k], chosen[k].expert);
      EXPECT_NEAR(double(routing.weight[std::size_t(t) * 2 + k]), chosen[k].weight, test::tolerance<Scalar>(1));
    }
  }
}

TEST(MlpTopK, EqualsItsNaiveTwin) {
  for (const Index d_model : {1, 8, 17, 40}) {
    for (const Index state_size : {1, 7, 8, 15, 16, 17, 33}) {
      for (const Index num_tokens : {0, 1, 7, 20}) {
        for (const bool hears : {false, true}) {
          for (const bool is_first : {false, true}) {
            expect_naive_twin<float>(d_model, state_size, num_tokens, hears, !is_first, is_first);
            expect_naive_twin<double>(d_model, state_size, num_tokens, hears, true, is_first);
          }
        }
      }
    }
  }
}

TEST(MlpTopK, AStateOfZerosAndAnEpsilonOfZeroMakeNoNotANumber) {
  const MlpTopK<float> router(random_mlp_router<float>(5, 4, 6, 1, true, false), {.top_k = 5}, {}, 0);
  const auto routing = route(router, Matrix<float>::Zero(4, 3));
  EXPECT_EQ(routing.logits, std::vector<float>(15, 0));
  EXPECT_TRUE(as_vector(routing.weight).allFinite());
}

TEST(MlpTopK, HandsItsStateOnShapedOrNotAndOthersHaveNone) {
  const auto x = random_matrix<Matrix<float>>(4, 3, 1);
  const MlpLogits<float> mlp(random_mlp_router<float>(5, 4, 6, 1));
  const auto plain = route(LogitsRouter(mlp, TopKChoice<float>(5, {})), x),
             shaped = route(LogitsRouter(ShapedLogits(mlp, {.soft_cap = 0.5}), TopKChoice<float>(5, {})), x);
  EXPECT_EQ(plain.state.size(), 18U);
  EXPECT_EQ(shaped.state, plain.state);
  EXPECT_NE(shaped.logits, plain.logits);

  std::vector<Scratch> scratch;
  const Serial serial;
  Workers workers(serial, scratch);
  Routing<float> routing = plain;
  LogitsRouter(LinearLogits<float>(Weight<float>::Zero(5, 4)), TopKChoice<float>(5, {})).route(x, routing, workers);
  EXPECT_TRUE(routing.state.empty());
}

TEST(MlpTopK, HasTheNamesOfItsFiles) {
  MlpTopK<float> router(random_mlp_router<float>(5, 4, 6, 1), {});
  std::vector<std::string> names;
  for (const auto& parameter : parameters(router)) names.push_back(parameter.name);
  EXPECT_EQ(names,
            (std::vector<std::string>{"down_proj.weight", "down_proj.bias", "router_states_scale",
                                      "router_mlp.norm.weight", "router_mlp.fc1.weight", "router_mlp.fc1.bias",
                                      "router_mlp.fc2.weight", "router_mlp.fc2.bias", "router_mlp.out_proj.weight"}));
}

TEST(MlpTopK, RefusesWhatDoesNotFitWithTheNumbers) {
  const auto complaint = [](const auto& change, const TopKOptions& options = {}, double epsilon = 0) {
    auto weights = random_mlp_router<float>(5, 4, 6, 1);
    change(weights);
    return test::error_of([&] { MlpTopK<float>(weights, options, {}, epsilon); });
  };
  using Weights = MlpRouterWeights<float>;
  EXPECT_EQ(complaint([](Weights&) {}), "no error");
  EXPECT_EQ(complaint([](Weights& w) { w.out.resize(0, 6); }), "MlpTopK: needs at least one expert");
  EXPECT_EQ(complaint([](Weights& w) { w.down.resize(0, 4); }), "MlpTopK: down.rows() is 0, expected 1 or more");
  EXPECT_EQ(complaint([](Weights& w) { w.down_bias.resize(5); }), "MlpTopK: down_bias.size() is 5, expected 6");
  EXPECT_EQ(complaint([](Weights& w) { w.state_scale.resize(7); }), "MlpTopK: state_scale.size() is 7, expected 6");
  EXPECT_EQ(complaint([](Weights& w) { w.norm_scale.resize(0); }), "MlpTopK: norm_scale.size() is 0, expected 6");
  EXPECT_EQ(complaint([](Weights& w) { w.fc1.resize(5, 6); }), "MlpTopK: fc1.rows() is 5, expected 6");
  EXPECT_EQ(complaint([](Weights& w) { w.fc2.resize(6, 5); }), "MlpTopK: fc2.cols() is 5, expected 6");
  EXPECT_EQ(complaint([](Weights& w) { w.fc1_bias.resize(1); }), "MlpTopK: fc1_bias.size() is 1, expected 6");
  EXPECT_EQ(complaint([](Weights& w) { w.fc2_bias.resize(1); }), "MlpTopK: fc2_bias.size() is 1, expected 6");
  EXPECT_EQ(complaint([](Weights& w) { w.out.resize(5, 4); }), "MlpTopK: out.cols() is 4, expected 6");
  EXPECT_EQ(complaint([](Weights&) {}, {}, -1), "MlpTopK: norm_epsilon is -1.000000, expected 0 or more");
  EXPECT_EQ(complaint([](Weights&) {}, {.top_k = 6}), "MlpTopK: top_k is 6, expected 1 to 5");

  const MlpTopK<float> router(random_mlp_router<float>(5, 4, 6, 1), {});
  const Matrix<float> x = Matrix<float>::Zero(4, 3);
  auto routing = route(router, x);
  EXPECT_EQ(
      test::error_of([&] { route(router, {x, {.previous_state = std::span<const float>(routing.state).first(17)}}); }),
      "MlpTopK: side.previous_state.size() is 17, expected 18");
  std::vector<Scratch> scratch;
  const Serial serial;
  Workers workers(serial, scratch);
  const SideInputs<float> side{.previous_state = routing.state};
  EXPECT_EQ(test::error_of([&] { router.route(Tokens<float>(x, side), routing, workers); }),
            "MlpTopK: side.previous_state is that of the routing that is being written");
}

}  // namespace moe::laws
