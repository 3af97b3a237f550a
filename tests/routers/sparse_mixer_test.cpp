#include "laws/router_laws.hpp"

#include "moe/routers/sparse_mixer.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <vector>

#include "errors.hpp"
#include "naive.hpp"

namespace moe::laws {

using Experts = std::vector<Index>;
using Numbers = std::vector<double>;
const double nan = std::numeric_limits<double>::quiet_NaN(), inf = std::numeric_limits<double>::infinity();

struct SparseMixers {
  static SparseMixer<float> make(Index d_model) {
    return SparseMixer<float>(random_matrix<Weight<float>>(7, d_model, 3, 3 / std::sqrt(double(d_model))));
  }
};
struct SparseMixersOfThree {
  static SparseMixer<double> make(Index d_model) {
    return SparseMixer<double>(random_matrix<Weight<double>>(11, d_model, 4, 3), {.top_k = 3, .jitter = 0.3});
  }
};
using Mixers = testing::Types<SparseMixers, SparseMixersOfThree>;
INSTANTIATE_TYPED_TEST_SUITE_P(SparseMixer, RouterLaws, Mixers);
INSTANTIATE_TYPED_TEST_SUITE_P(SparseMixer, TokenChoiceLaws, Mixers);

/// The rounds, in plain words, for finite logits.
std::vector<test::naive::Choice> naive_rounds(const Numbers& logits, const SparseMixerOptions& options) {
  std::vector<test::naive::Choice> chosen;
  std::vector<bool> taken(logits.size(), false);
  for (Index k = 0; k < options.top_k; ++k) {
    std::size_t best = logits.size();
    for (std::size_t e = 0; e < logits.size(); ++e) {
      if (!taken[e] && (best == logits.size() || logits[e] > logits[best])) best = e;
    }
    double sum = 0;
    for (std::size_t e = 0; e < logits.size(); ++e) {
      const double far = (logits[best] - logits[e]) / std::max(std::abs(logits[e]), logits[best]);
      if (!taken[e] && !(far > 2 * options.jitter)) sum += std::exp(logits[e] - logits[best]);
    }
    chosen.push_back({Index(best), 1 / sum});
    taken[best] = true;
  }
  return chosen;
}

SparseMixer<double> of_logits(Index num_experts, const SparseMixerOptions& options) {
  return SparseMixer<double>(Weight<double>::Identity(num_experts, num_experts), options);
}

TEST(SparseMixer, EqualsItsNaiveTwin) {
  Random random(1);
  for (const Index num_experts : {1, 2, 7, 16, 17}) {
    for (const Index top_k : {1, 2, 3, 17}) {
      for (const double jitter : {0.0, 0.1, 0.3, 5.0}) {
        if (top_k > num_experts) continue;
        const SparseMixerOptions options{.top_k = top_k, .jitter = jitter};
        for (const double scale : {0.5, 3.0}) {
          const auto logits = random.matrix<Matrix<double>>(num_experts, 33, scale);
          const auto routing = route(of_logits(num_experts, options), logits);
          ASSERT_EQ(routing.size(), top_k * 33);
          for (Index t = 0; t < 33; ++t) {
            const auto expected = naive_rounds({logits.col(t).begin(), logits.col(t).end()}, options);
            for (Index k = 0; k < top_k; ++k) {
              const auto r = std::size_t(t * top_k + k);
              EXPECT_EQ(routing.token[r], t);
              EXPECT_EQ(routing.expert[r], expected[std::size_t(k)].expert);
              EXPECT_NEAR(routing.weight[r], expected[std::size_t(k)].weight, 1e-14);
            }
          }
        }
      }
    }
  }
}

TEST(SparseMixer, IsNotASoftmaxTopK) {
  // The best stands alone, so it counts for one; the two that follow are near each other, and share alike.
  const auto routing = route(of_logits(4, {.top_k = 2, .jitter = 0.1}), Eigen::Vector4d(4, 1, 1, -3));
  EXPECT_EQ(routing.expert, (Experts{0, 1}));
  EXPECT_EQ(routing.weight, (Numbers{1, 0.5}));
}

TEST(SparseMixer, OfTiesTheLowerIndexWins) {
  const auto routing = route(of_logits(5, {.top_k = 3}), Matrix<double>::Constant(5, 1, 0.7));
  EXPECT_EQ(routing.expert, (Experts{0, 1, 2}));
  EXPECT_TRUE(is_close(as_vector(routing.weight), Eigen::Vector3d(1. / 5, 1. / 4, 1. / 3)));
}

/// What a token with these logits gets; infinite ones, too, which a product with zeros would spoil.
Routing<double> choose(const Numbers& logits, Index top_k) {
  const Index n = Index(logits.size());
  const SparseMixer<double> router(Eigen::Map<const Weight<double>>(logits.data(), n, 1), {.top_k = top_k});
  return route(router, Matrix<double>::Ones(1, 1));
}

TEST(SparseMixer, IsDefinedForSpecialLogits) {
  EXPECT_EQ(choose({1, inf, 0}, 2).expert, (Experts{1, 0}));
  EXPECT_EQ(choose({1, inf, 0}, 1).weight, Numbers{1});
  EXPECT_EQ(choose({inf, 3, inf}, 2).weight, (Numbers{0.5, 1}));
  EXPECT_EQ(choose({-inf, 2, -inf}, 2).expert, (Experts{1, 0}));
  EXPECT_EQ(choose({-inf, 2, -inf}, 2).weight, (Numbers{1, 0.5}));  // two are left, both at −∞
  EXPECT_EQ(choose(Numbers(4, -inf), 2).weight, (Numbers{0.25, 1. / 3}));
  EXPECT_EQ(choose({nan, 1, nan, 5}, 4).expert, (Experts{3, 1, 0, 2}));
  for (const double weight : choose({nan, 1, 2}, 2).weight) EXPECT_TRUE(std::isnan(weight));
  const std::array<double, 5> specials = {nan, inf, -inf, 0, 1e300};
  for (int code = 0; code < 625; ++code) {
    Numbers logits;
    for (int e = 0, rest = code; e < 4; ++e, rest /= 5) logits.push_back(specials[std::size_t(rest % 5)]);
    const auto routing = choose(logits, 3);
    Experts sorted = routing.expert;
    std::sort(sorted.begin(), sorted.end());
    EXPECT_TRUE(std::adjacent_find(sorted.begin(), sorted.end()) == sorted.end()) << "combination " << code;
    EXPECT_TRUE(sorted.front() >= 0 && sorted.back() < 4) << "combination " << code;
    const bool healthy = std::none_of(logits.begin(), logits.end(), [](double l) { return std::isnan(l); });
    EXPECT_TRUE(!healthy || as_vector(routing.weight).allFinite()) << "combination " << code;
  }
}

TEST(SparseMixer, AllExpertsOneExpertAndNoToken) {
  const auto x = random_matrix<Matrix<double>>(5, 4, 1);
  EXPECT_EQ(route(of_logits(5, {.top_k = 5}), x).size(), 20);
  EXPECT_EQ(route(of_logits(1, {.top_k = 1}), x.topRows(1)).weight, Numbers(4, 1));
  EXPECT_EQ(route(of_logits(5, {.top_k = 2}), x.leftCols(0)).size(), 0);
}

TEST(SparseMixer, RefusesWhatDoesNotFitWithTheNumbers) {
  const auto complaint = [](const SparseMixerOptions& options, Index num_experts = 6) {
    return test::error_of([&] { SparseMixer<float>(Weight<float>::Zero(num_experts, 4), options); });
  };
  EXPECT_EQ(complaint({}), "no error");
  EXPECT_EQ(complaint({.top_k = 7}), "SparseMixer: top_k is 7, expected 1 to 6");
  EXPECT_EQ(complaint({.top_k = 0}), "SparseMixer: top_k is 0, expected 1 to 6");
  EXPECT_EQ(complaint({.jitter = -1}), "SparseMixer: jitter is -1.000000, expected at least 0");
  EXPECT_EQ(complaint({}, 0), "SparseMixer: needs at least one expert");
}

}  // namespace moe::laws
