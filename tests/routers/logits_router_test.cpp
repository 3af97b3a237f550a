#include "laws/router_laws.hpp"

#include "moe/routers/logits_router.hpp"

#include <cmath>
#include <utility>

#include "errors.hpp"
#include "moe/routers/base_layers.hpp"
#include "moe/routers/carried_top_k.hpp"
#include "moe/routers/cosine_top_k.hpp"
#include "moe/routers/expert_choice.hpp"
#include "moe/routers/linear_top_k.hpp"
#include "moe/routers/noisy_top_k.hpp"
#include "moe/routers/normed_top_k.hpp"
#include "moe/routers/quantile_balancing.hpp"
#include "moe/routers/relu_router.hpp"
#include "moe/routers/sinkhorn.hpp"
#include "moe/routers/sparse_mixer.hpp"
#include "moe/routers/token_hash.hpp"
#include "moe/routers/top_p.hpp"

namespace moe::laws {

constexpr Index law_experts = 11;

template <class Scalar = float>
Weight<Scalar> rows_for(Index rows, Index cols, unsigned seed) {
  return random_matrix<Weight<Scalar>>(rows, cols, seed, 3 / std::sqrt(double(cols)));
}

// Three that no name puts together: any logits go with any choice.

struct CosinesBalanced {
  static auto make(Index d_model) {
    return LogitsRouter(CosineLogits<float>(rows_for(6, d_model, 1), rows_for(law_experts, 6, 2), std::log(5.0)),
                        SinkhornChoice<float>(law_experts, {.top_k = 2}));
  }
};
struct ExpertsChooseByNormed {
  static auto make(Index d_model) {
    return LogitsRouter(
        NormedLogits<double>(rows_for<double>(law_experts, d_model, 3), random_matrix<Vector<double>>(d_model, 1, 4)),
        ChoiceByExperts<double>());
  }
};
struct TopPOfNoisy {
  static auto make(Index d_model) {
    return LogitsRouter(NoisyLogits<float>(rows_for(law_experts, d_model, 5), rows_for(law_experts, d_model, 6)),
                        TopPChoice<float>({.top_p = 0.6}));
  }
  static SideInputs<float> side(Index first, Index count) {
    static const auto noise = random_matrix<Matrix<float>>(law_experts, 64, 7);
    return {.noise = {noise.data() + law_experts * first, std::size_t(law_experts * count)}};
  }
};
using Pairs = testing::Types<CosinesBalanced, ExpertsChooseByNormed, TopPOfNoisy>;
INSTANTIATE_TYPED_TEST_SUITE_P(LogitsRouter, RouterLaws, Pairs);
INSTANTIATE_TYPED_TEST_SUITE_P(LogitsRouter, TokenChoiceLaws, TopPOfNoisy);

TEST(LogitsRouter, HasTheLogitsOfOnePartAndTheRoutesOfTheOther) {
  const auto x = random_matrix<Matrix<float>>(9, 30, 8);
  const auto projection = rows_for(6, 9, 1), experts = rows_for(law_experts, 6, 2);
  const auto pair = route(CosinesBalanced::make(9), x);
  const auto cosines = route(CosineTopK<float>(projection, experts, {.top_k = 2}, std::log(5.0)), x);
  EXPECT_EQ(pair.logits, cosines.logits);
  const Matrix<float> logits = logits_of(cosines, law_experts, 30);
  const auto balanced = route(Sinkhorn<float>(Weight<float>::Identity(law_experts, law_experts), {.top_k = 2}), logits);
  EXPECT_EQ(pair.expert, balanced.expert);
  EXPECT_EQ(pair.weight, balanced.weight);
}

/// A newly published router is one part: here a choice that takes every second expert.
struct EverySecond {
  using Scalar = float;
  void route(const ConstMatrixRef<float>& logits, Routing<float>& routing, Workers&) const {
    for (Index t = 0; t < logits.cols(); ++t) {
      for (Index e = 0; e < logits.rows(); e += 2) routing.add(t, e, logits(e, t));
    }
  }
};

/// … and here logits that read nothing.
struct Standing {
  using Scalar = float;
  Eigen::VectorXf numbers;
  Index d_model() const { return 2; }
  Index num_experts() const { return numbers.size(); }
  void compute(const Tokens<float>& tokens, MatrixRef<float> logits, Workers&) const {
    logits = numbers.replicate(1, tokens.count());
  }
};

TEST(LogitsRouter, TakesPartsOfYours) {
  const Matrix<float> x = Matrix<float>::Zero(2, 2);
  const Standing standing{Eigen::Vector3f(0.5F, 2, 1)};
  EXPECT_EQ(route(LogitsRouter(standing, EverySecond{}), x).weight, (std::vector<float>{0.5F, 1, 0.5F, 1}));
  EXPECT_EQ(route(LogitsRouter(standing, TopKChoice<float>(3, {})), x).expert, (std::vector<Index>{1, 1}));
  EXPECT_EQ(route(LogitsRouter(LinearLogits<float>(rows_for(4, 2, 1)), EverySecond{}), x).size(), 4);
}

TEST(LogitsRouter, HasWhatItsPartsHave) {
  LogitsRouter router(LinearLogits<float>(rows_for(4, 3, 1), Eigen::Vector4f::Ones()), TopKChoice<float>(4, {}));
  router.weight().setZero();
  router.bias()(2) = 5;
  EXPECT_TRUE(router.logits().weight().isZero(0));
  EXPECT_EQ(router.logits().bias(), Eigen::Vector4f(1, 1, 5, 1));
  EXPECT_EQ(router.top_k(), 1);
  const auto has_any_of_it = []<class R>(const R&) {
    return requires(const R& r) { r.top_k(); } || requires(const R& r) { r.weight(); } ||
           requires(const R& r) { r.options(); } || requires(R& r) { r.selection_bias(); };
  };
  EXPECT_TRUE(has_any_of_it(router));
  EXPECT_FALSE(
      has_any_of_it(LogitsRouter(CosineLogits<float>(rows_for(2, 3, 1), rows_for(4, 2, 1), 1), ReluChoice<float>())));
}

TEST(LogitsRouter, RefusesPartsThatDoNotFit) {
  const auto complaint = [](Index experts, auto choice) {
    return test::error_of(
        [&] { LogitsRouter(CosineLogits<float>(rows_for(2, 3, 1), rows_for(experts, 2, 1), 0), choice); });
  };
  const std::string differ = "LogitsRouter: logits.num_experts(), against that of the choice, is 5, expected 6";
  const HashTable table{{5, 0}};
  EXPECT_EQ(complaint(6, TopKChoice<float>(6, {})), "no error");
  EXPECT_EQ(complaint(5, TopKChoice<float>(6, {})), differ);
  EXPECT_EQ(complaint(5, ScaledTopKChoice<float>(6, {}, Eigen::VectorXf::Ones(6))), differ);
  EXPECT_EQ(complaint(5, SinkhornChoice<float>(6, {})), differ);
  EXPECT_EQ(complaint(5, QuantileChoice<float>(6, {})), differ);
  EXPECT_EQ(complaint(5, HashTableChoice<float>(6, {}, table)), differ);
  EXPECT_EQ(complaint(0, HashTableChoice<float>(6, {}, table)), "no error");
  EXPECT_EQ(complaint(5, SparseMixerChoice<float>({.top_k = 6})), "SparseMixer: top_k is 6, expected 1 to 5");
  EXPECT_EQ(complaint(0, TopPChoice<float>({})), "LogitsRouter: needs at least one expert");
  EXPECT_EQ(complaint(0, ChoiceByExperts<float>()), "LogitsRouter: needs at least one expert");
  EXPECT_EQ(complaint(0, BaseLayersChoice<float>()), "BaseLayersRouter: needs at least one expert");
}

TEST(LogitsRouter, LogitsThatGrowAreNotReadWhereTheyWere) {
  const LogitsRouter router(CarriedLogits<float>(rows_for(40, 3, 1), rows_for(40, 2, 2)), ReluChoice<float>());
  Routing<float> routing;
  routing.logits = {1, 2};  // of the layer before, which had two experts
  std::vector<Scratch> scratch;
  const Serial serial;
  Workers workers(serial, scratch);
  const SideInputs<float> side{.previous_logits = routing.logits};
  EXPECT_EQ(test::error_of([&] { router.route(Tokens<float>(Matrix<float>::Zero(3, 1), side), routing, workers); }),
            "CarriedLogits: side.previous_logits are those of the routing that is being written");
}

TEST(LogitsRouter, NamesDeduceTheirScalar) {
  const Weight<float> w = rows_for(4, 4, 1);
  const HashTable table{{3, 0}};
  const LinearTopK linear(w, {.top_k = 2}, Eigen::Vector4f::Ones());
  const NoisyTopK noisy(w, {}, {.top_k = 2});
  const CosineTopK cosine(w, w, {.top_k = 2}, 1);
  const CarriedTopK carried(w, w, {.top_k = 2});
  const NormedTopK normed(w, Eigen::Vector4f::Ones(), Eigen::Vector4f::Ones(), {.top_k = 2});
  const Sinkhorn sinkhorn(w, {.top_k = 2});
  const QuantileBalanced quantile(w);
  const ExpertChoice choice(w);
  const TopP top_p(w, {});
  const ReluRouter relu(w);
  const SparseMixer mixer(w);
  const TokenHash hash(w, {}, table);
  const auto all_are_float = [](const auto&... routers) {
    return (std::is_same_v<typename std::decay_t<decltype(routers)>::Scalar, float> && ...);
  };
  EXPECT_TRUE(
      all_are_float(linear, noisy, cosine, carried, normed, sinkhorn, quantile, choice, top_p, relu, mixer, hash));
}

}  // namespace moe::laws
