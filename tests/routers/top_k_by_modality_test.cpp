#include "laws/router_laws.hpp"

#include "moe/routers/top_k_by_modality.hpp"

#include <cmath>
#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <vector>

#include "errors.hpp"
#include "moe/core/parameters.hpp"
#include "moe/losses/load_balancing.hpp"
#include "moe/losses/z_loss.hpp"
#include "moe/routers/cosine_top_k.hpp"
#include "moe/telemetry/routing_stats.hpp"
#include "naive.hpp"

namespace moe::laws {

const double inf = std::numeric_limits<double>::infinity();
constexpr Index text_experts = 7, vision_experts = 4;
constexpr TopKOptions ernie = {.top_k = 2, .renormalize = true, .floor = 1e-12};

template <class Scalar>
LinearTopK<Scalar> part(Index num_experts, Index d_model, unsigned seed) {
  return {random_matrix<Weight<Scalar>>(num_experts, d_model, seed, 3 / std::sqrt(double(d_model))),
          ernie,
          {},
          random_matrix<Vector<Scalar>>(num_experts, 1, seed + 1, 0.1)};
}

std::span<const std::uint8_t> standing_modalities(Index first, Index count) {
  static const std::vector<std::uint8_t> modalities = [] {
    std::vector<std::uint8_t> made;
    for (int t = 0; t < 64; ++t) made.push_back(std::uint8_t(t % 3 == 1 || t % 7 == 2));
    return made;
  }();
  return std::span(modalities).subspan(std::size_t(first), std::size_t(count));
}

template <class Scalar>
struct TextAndVision {
  static TopKByModality<Scalar> make(Index d_model) {
    return TopKByModality<Scalar>({part<Scalar>(text_experts, d_model, 1), part<Scalar>(vision_experts, d_model, 3)});
  }
  static SideInputs<Scalar> side(Index first, Index count) { return {.modality = standing_modalities(first, count)}; }
};
struct TextAlone {
  static TopKByModality<float> make(Index d_model) { return TextAndVision<float>::make(d_model); }
};
using Modal = testing::Types<TextAndVision<float>, TextAndVision<double>, TextAlone>;
INSTANTIATE_TYPED_TEST_SUITE_P(TopKByModality, RouterLaws, Modal);
INSTANTIATE_TYPED_TEST_SUITE_P(TopKByModality, TokenChoiceLaws, Modal);

/// Who is of modality 1.
enum class Who { nobody, everybody, some };

std::vector<std::uint8_t> modalities_of(Who who, Index num_tokens) {
  std::vector<std::uint8_t> made;
  for (Index t = 0; t < num_tokens; ++t) {
    made.push_back(who == Who::everybody || (who == Who::some && t % 3 == 1));
  }
  return made;
}

template <class Scalar>
void expect_naive_twin(Index d_model, Index num_tokens, Who who) {
  const LinearTopK<Scalar> parts[] = {part<Scalar>(text_experts, d_model, 1), part<Scalar>(vision_experts, d_model, 3)};
  const TopKByModality<Scalar> router({parts[0], parts[1]});
  const auto modality = modalities_of(who, num_tokens);
  const auto x = random_matrix<Matrix<Scalar>>(d_model, num_tokens, 5);
  const auto routing = route(router, {x, {.modality = modality}});
  ASSERT_EQ(routing.size(), 2 * num_tokens);
  const Eigen::Map<const Matrix<Scalar>> logits(routing.logits.data(), text_experts + vision_experts, num_tokens);
  ASSERT_EQ(Index(routing.logits.size()), logits.size());
  for (Index t = 0; t < num_tokens; ++t) {
    const bool sees = modality[std::size_t(t)] == 1;
    const Index first = sees ? text_experts : 0, count = sees ? vision_experts : text_experts;
    const auto& its = parts[sees ? 1 : 0];
    const auto own = logits.col(t).segment(first, count);
    EXPECT_TRUE(is_close(own, test::naive::product(test::naive::exact(its.weight()), test::naive::exact(x.col(t)))));
    for (Index e = 0; e < logits.rows(); ++e) {
      if (e < first || e >= first + count) {
        EXPECT_EQ(double(logits(e, t)), -inf);
      }
    }
    const std::vector<double> bias(its.selection_bias().begin(), its.selection_bias().end());
    const auto chosen = test::naive::choose({own.begin(), own.end()}, ernie, bias);
    for (std::size_t k = 0; k < 2; ++k) {
      const std::size_t r = std::size_t(t) * 2 + k;
      EXPECT_EQ(routing.token[r], t);
      EXPECT_EQ(routing.expert[r], first + chosen[k].expert);
      EXPECT_NEAR(double(routing.weight[r]), chosen[k].weight, test::tolerance<Scalar>(1));
    }
  }
}

TEST(TopKByModality, EqualsItsNaiveTwin) {
  for (const Index d_model : {1, 8, 17, 40}) {
    for (const Index num_tokens : token_counts) {
      for (const Who who : {Who::nobody, Who::everybody, Who::some}) {
        expect_naive_twin<float>(d_model, num_tokens, who);
        expect_naive_twin<double>(d_model, num_tokens, who);
      }
    }
  }
}

TEST(TopKByModality, WhereNothingIsSaidAllAreText) {
  const auto router = TextAndVision<float>::make(9);
  const auto x = random_matrix<Matrix<float>>(9, 20, 5);
  const auto modality = modalities_of(Who::nobody, 20);
  const auto silent = route(router, x), said = route(router, {x, {.modality = modality}});
  EXPECT_EQ(silent.expert, said.expert);
  EXPECT_EQ(silent.weight, said.weight);
  EXPECT_EQ(silent.logits, said.logits);
}

TEST(TopKByModality, OfOneModalityIsLinearTopKToTheLastBit) {
  const auto its = part<float>(text_experts, 9, 1);
  const auto x = random_matrix<Matrix<float>>(9, 20, 5);
  const auto alone = route(its, x), wrapped = route(TopKByModality<float>({its}), x);
  EXPECT_EQ(wrapped.expert, alone.expert);
  EXPECT_EQ(wrapped.weight, alone.weight);
  EXPECT_EQ(wrapped.logits, alone.logits);
}

TEST(TopKByModality, ManyModalitiesOfAnyLogitsAreNumberedThrough) {
  const auto cosines = [](Index num_experts, unsigned seed) {
    return CosineLogits<float>(random_matrix<Weight<float>>(3, 5, seed),
                               random_matrix<Weight<float>>(num_experts, 3, seed + 1), 1);
  };
  const LogitsRouter router(
      LogitsByModality(std::vector{cosines(2, 1), cosines(1, 3), cosines(4, 5)}),
      ChoiceByModality(std::vector{TopKChoice<float>(2, {}), TopKChoice<float>(1, {}), TopKChoice<float>(4, {})}));
  EXPECT_EQ(router.num_experts(), 7);
  const std::vector<std::uint8_t> modality{2, 0, 1, 1, 2};
  const auto routing = route(router, {random_matrix<Matrix<float>>(5, 5, 7), {.modality = modality}});
  for (Index t = 0; t < 5; ++t) {
    const Index e = routing.expert[std::size_t(t)];
    EXPECT_EQ(router.choice().modality_of_expert(e), modality[std::size_t(t)]);
    EXPECT_EQ(e >= 3, modality[std::size_t(t)] == 2);
    EXPECT_EQ(e == 2, modality[std::size_t(t)] == 1);
  }
}

TEST(TopKByModality, ExpertsOfOtherModalitiesTakeNoPartInLossesAndTelemetry) {
  const auto router = TextAndVision<double>::make(9);
  const auto its = part<double>(text_experts, 9, 1);
  const auto x = random_matrix<Matrix<double>>(9, 20, 5);
  const auto modal = route(router, x), alone = route(its, x);
  const auto all = measure_shares(modal, 20, 11), own = measure_shares(alone, 20, text_experts);
  EXPECT_TRUE(is_close(all.probability.topRows(text_experts).matrix(), own.probability.matrix()));
  EXPECT_EQ(all.probability.bottomRows(vision_experts).sum(), 0);
  EXPECT_NEAR(load_balancing_loss(all) / 11, load_balancing_loss(own) / 7, 1e-12);
  EXPECT_NEAR(z_loss(logits_of(modal, 11, 20)), z_loss(logits_of(alone, 7, 20)), 1e-12);
  RoutingStats stats(11), stats_alone(7);
  stats.add(modal, 20);
  stats_alone.add(alone, 20);
  EXPECT_EQ(stats.num_nan_tokens(), 0);
  EXPECT_NEAR(stats.mean_entropy(), stats_alone.mean_entropy(), 1e-12);
}

TEST(TopKByModality, HasAScopeForEachModality) {
  auto router = TextAndVision<float>::make(9);
  std::vector<std::string> names;
  for (const auto& parameter : parameters(router)) names.push_back(parameter.name);
  EXPECT_EQ(names, (std::vector<std::string>{"0.weight", "1.weight"}));
}

TEST(TopKByModality, RefusesWhatDoesNotFitWithTheNumbers) {
  using Routers = std::vector<LinearTopK<float>>;
  const auto complaint = [](const Routers& routers) { return test::error_of([&] { TopKByModality<float>{routers}; }); };
  const auto with = [](Index d_model, const TopKOptions& options) {
    return LinearTopK<float>(Weight<float>::Zero(3, d_model), options);
  };
  EXPECT_EQ(complaint({with(4, {}), with(4, {})}), "no error");
  EXPECT_EQ(complaint({}), "TopKByModality: needs at least one modality");
  EXPECT_EQ(complaint({with(4, {}), with(5, {})}), "TopKByModality: d_model of modality 1 is 5, expected 4");
  EXPECT_EQ(complaint({with(4, {}), with(4, {.top_k = 2})}), "TopKByModality: top_k of modality 1 is 2, expected 1");
  EXPECT_EQ(complaint({with(4, {}), with(4, {.weight_on = WeightOn::input})}),
            "TopKByModality: weight_on of modality 1 is another one than that of modality 0");
  const auto router = TextAndVision<float>::make(4);
  const Matrix<float> x = Matrix<float>::Zero(4, 3);
  const auto routing_complaint = [&](const std::vector<std::uint8_t>& modality) {
    return test::error_of([&] { route(router, {x, {.modality = modality}}); });
  };
  EXPECT_EQ(routing_complaint({0, 1, 1}), "no error");
  EXPECT_EQ(routing_complaint({0, 1}), "TopKByModality: side.modality.size() is 2, expected 3");
  EXPECT_EQ(routing_complaint({0, 1, 2}), "TopKByModality: token 2 is of modality 2, expected 0 to 1");
  EXPECT_EQ(test::error_of([] {
              const std::vector logits{LinearLogits<float>(Weight<float>::Zero(5, 4))};
              const std::vector choices{TopKChoice<float>(6, {})};
              LogitsRouter(LogitsByModality(logits), ChoiceByModality(choices));
            }),
            "LogitsRouter: logits.num_experts(), against that of the choice, is 5, expected 6");
}

}  // namespace moe::laws
