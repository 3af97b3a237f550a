/// @file  Telemetry counts what a naive twin counts, whatever the routing.
#include "allocations.hpp"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <set>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "compare.hpp"
#include "errors.hpp"
#include "moe/telemetry.hpp"
#include "naive.hpp"
#include "random.hpp"

namespace moe {
namespace {

using test::Random;
using test::tolerance;

constexpr double nan = std::numeric_limits<double>::quiet_NaN(), inf = std::numeric_limits<double>::infinity();

/// How a batch of the grid is routed.
struct Kind {
  Index num_experts, num_tokens, top_k;
  bool token_choice, logits, drops;
};

/// Token choice: top_k experts each, from a random one on. Expert choice: each expert takes each token or not.
template <class Scalar>
Routing<Scalar> random_routing(const Kind& kind, Random& random) {
  Routing<Scalar> routing;
  if (kind.token_choice) {
    for (Index t = 0; t < kind.num_tokens; ++t) {
      const Index from = random.below(kind.num_experts);
      for (Index k = 0; k < kind.top_k; ++k) routing.add(t, (from + k * k + k) % kind.num_experts, Scalar(1));
    }
  } else {
    for (Index e = 0; e < kind.num_experts; ++e) {
      for (Index t = 0; t < kind.num_tokens; ++t) {
        if (random() < -0.3) routing.add(t, e, Scalar(1));
      }
    }
  }
  if (kind.drops) {
    for (Index r = 0; r < routing.size(); ++r) {
      if (random() < -0.5) routing.drop(r);
    }
  }
  for (Index i = 0; kind.logits && i < kind.num_experts * kind.num_tokens; ++i) {
    routing.logits.push_back(static_cast<Scalar>(4 * random()));
  }
  return routing;
}

std::vector<double> naive_probabilities(std::vector<double> logits, Score score) {
  if (score == Score::softmax || score == Score::softmax_of_chosen) return test::naive::softmax(logits);
  double sum = 0;
  for (double& l : logits) {
    l = score == Score::sigmoid ? 1 / (1 + std::exp(-l)) : std::sqrt(std::log(1 + std::exp(l)));
    sum += l;
  }
  for (double& l : logits) l /= sum;
  return logits;
}

/// All that there is to count, over any number of batches.
struct Naive {
  std::vector<double> load, dropped, probability;
  std::vector<std::vector<double>> pairs;
  std::vector<double> entropies, margins;
  double tokens = 0;

  explicit Naive(Index num_experts)
      : load(std::size_t(num_experts)), dropped(load), probability(load), pairs(load.size(), load) {}

  template <class Scalar>
  void add(const Routing<Scalar>& routing, Index num_tokens, Score score) {
    const auto experts = Index(load.size());
    tokens += double(num_tokens);
    for (Index t = 0; t < num_tokens; ++t) {
      std::vector<std::size_t> kept;
      std::size_t k = 0;
      for (Index r = 0; r < routing.size(); ++r) {
        if (routing.token[std::size_t(r)] != t) continue;
        const auto e = std::size_t(routing.expert[std::size_t(r)]);
        ++k;
        (routing.is_dropped(r) ? dropped : load)[e] += 1;
        if (!routing.is_dropped(r)) kept.push_back(e);
      }
      for (const auto a : kept) {
        for (const auto b : kept) pairs[a][b] += a == b ? 0 : 1;
      }
      if (routing.logits.empty()) continue;
      std::vector<double> logits(routing.logits.begin() + t * experts, routing.logits.begin() + (t + 1) * experts);
      double entropy = 0;
      const std::vector<double> p = naive_probabilities(logits, score);
      for (std::size_t e = 0; e < p.size(); ++e) {
        probability[e] += p[e];
        entropy -= p[e] * std::log(p[e]);
      }
      entropies.push_back(entropy);
      std::sort(logits.begin(), logits.end(), std::greater<>());
      if (k > 0 && k < logits.size()) margins.push_back(logits[k - 1] - logits[k]);
    }
  }

  static double sum(const std::vector<double>& numbers) {
    double sum = 0;
    for (const double number : numbers) sum += number;
    return sum;
  }
  static double mean(const std::vector<double>& numbers) { return sum(numbers) / double(numbers.size()); }
};

/// Equal to rounding; nothing equals nothing.
testing::AssertionResult is_near(double actual, double expected, double accepted) {
  if (std::isnan(actual) && std::isnan(expected)) return testing::AssertionSuccess();
  if (std::abs(actual - expected) <= accepted) return testing::AssertionSuccess();
  return testing::AssertionFailure() << actual << ", expected " << expected << ", accepted " << accepted;
}

template <class Scalar>
void expect_equal(const RoutingStats& stats, const Naive& naive) {
  const Index num_experts = stats.num_experts();
  const double exact = tolerance<double>(10), rounded = tolerance<Scalar>(5);
  const double load = Naive::sum(naive.load), dropped = Naive::sum(naive.dropped);
  const double mean = load / double(num_experts);
  std::vector<double> squares, dead;
  for (Index e = 0; e < num_experts; ++e) {
    const auto i = std::size_t(e);
    ASSERT_EQ(double(stats.load(e)), naive.load[i]);
    ASSERT_EQ(double(stats.dropped(e)), naive.dropped[i]);
    EXPECT_TRUE(is_near(stats.drop_rate(e), naive.dropped[i] / (naive.dropped[i] + naive.load[i]), exact));
    EXPECT_TRUE(is_near(stats.mean_probability(e), naive.probability[i] / double(naive.entropies.size()), rounded));
    for (Index f = 0; f < num_experts; ++f) {
      ASSERT_EQ(double(stats.pairs(e, f)), e == f ? naive.load[i] : naive.pairs[i][std::size_t(f)]);
    }
    squares.push_back((naive.load[i] - mean) * (naive.load[i] - mean));
    if (naive.load[i] == 0) dead.push_back(double(e));
  }
  const double most = *std::max_element(naive.load.begin(), naive.load.end());
  EXPECT_EQ(double(stats.num_tokens()), naive.tokens);
  EXPECT_EQ(double(stats.total_load()), load);
  EXPECT_EQ(double(stats.total_dropped()), dropped);
  EXPECT_TRUE(is_near(stats.routes_per_token(), load / naive.tokens, exact));
  EXPECT_TRUE(is_near(stats.drop_rate(), dropped / (load + dropped), exact));
  EXPECT_TRUE(is_near(stats.load_peak(), most / mean, exact));
  EXPECT_TRUE(is_near(stats.load_variation(), std::sqrt(Naive::mean(squares)) / mean, exact));
  const auto listed = stats.dead_experts();
  EXPECT_EQ(std::vector<double>(listed.begin(), listed.end()), dead);
  EXPECT_EQ(stats.num_dead_experts(), Index(dead.size()));
  EXPECT_EQ(stats.num_nan_tokens(), 0);
  EXPECT_TRUE(is_near(stats.mean_entropy(), Naive::mean(naive.entropies), rounded));
  const double share = num_experts == 1 ? 1 : stats.mean_entropy() / std::log(double(num_experts));
  EXPECT_TRUE(is_near(stats.entropy_share(), naive.entropies.empty() ? nan : share, exact));
  EXPECT_TRUE(is_near(stats.mean_margin(), Naive::mean(naive.margins), exact));
  const auto least = std::min_element(naive.margins.begin(), naive.margins.end());
  EXPECT_TRUE(is_near(stats.min_margin(), least == naive.margins.end() ? nan : *least, exact));
}

std::vector<Kind> grid() {
  std::vector<Kind> kinds;
  for (const Index num_experts : {1, 2, 7, 8, 9, 16, 17, 33}) {
    for (const Index num_tokens : {0, 1, 2, 17}) {
      for (const bool logits : {false, true}) {
        for (const bool drops : {false, true}) {
          // from + k² + k meets each expert at most once for two of any number but 2, where 1 is all that is left.
          kinds.push_back({num_experts, num_tokens, num_experts > 2 ? 2 : 1, true, logits, drops});
          kinds.push_back({num_experts, num_tokens, 1, true, logits, drops});
          kinds.push_back({num_experts, num_tokens, 0, false, logits, drops});
        }
      }
    }
  }
  return kinds;
}

template <class Scalar>
void expect_naive_twin(Score score) {
  Random random(11);
  for (const Kind& kind : grid()) {
    SCOPED_TRACE(std::to_string(kind.num_experts) + " experts, " + std::to_string(kind.num_tokens) + " tokens, " +
                 (kind.token_choice ? "top " + std::to_string(kind.top_k) : "expert choice"));
    RoutingStats stats(kind.num_experts, {.score = score});
    Naive naive(kind.num_experts);
    for (int batch = 0; batch < 3; ++batch) {
      const auto routing = random_routing<Scalar>(kind, random);
      stats.add(routing, kind.num_tokens);
      naive.add(routing, kind.num_tokens, score);
    }
    expect_equal<Scalar>(stats, naive);
  }
}

TEST(RoutingStats, EqualTheirNaiveTwin) {
  for (const Score score : {Score::softmax, Score::softmax_of_chosen, Score::sigmoid, Score::sqrt_softplus}) {
    SCOPED_TRACE("score " + std::to_string(int(score)));
    expect_naive_twin<float>(score);
    expect_naive_twin<double>(score);
  }
}

TEST(RoutingStats, ATokenThatGoesToAllExpertsHasNoMargin) {
  Random random(12);
  for (const Index num_experts : {1, 2, 5}) {
    Routing<float> routing = random_routing<float>({num_experts, 3, 0, true, true, false}, random);
    for (Index t = 0; t < 3; ++t) {
      for (Index e = 0; e < num_experts; ++e) routing.add(t, e, 1.0F);
    }
    RoutingStats stats(num_experts);
    stats.add(routing, 3);
    EXPECT_TRUE(std::isnan(stats.mean_margin()) && std::isnan(stats.min_margin()));
    EXPECT_FALSE(std::isnan(stats.mean_entropy()));
    EXPECT_EQ(stats.routes_per_token(), double(num_experts));
    EXPECT_EQ(stats.load_peak(), 1);
    EXPECT_EQ(stats.load_variation(), 0);
    EXPECT_EQ(stats.pairs(0, num_experts - 1), 3);
  }
}

TEST(RoutingStats, KOfATokenCountsItsDroppedRoutes) {
  Routing<double> routing;
  routing.logits = {5, 3, 2, 0};
  routing.add(0, 0, 1.0);
  routing.add(0, 1, 1.0);
  routing.drop(1);
  RoutingStats stats(4);
  stats.add(routing, 1);
  EXPECT_EQ(stats.mean_margin(), 1);  // 3 − 2
  EXPECT_EQ(stats.pairs(0, 1), 0);
  EXPECT_EQ(stats.drop_rate(), 0.5);
  EXPECT_EQ(stats.drop_rate(1), 1);
  EXPECT_EQ(stats.dead_experts(), (std::vector<Index>{1, 2, 3}));
}

TEST(RoutingStats, ATokenThatGoesToAnExpertTwiceCountsTwiceAndIsNoPair) {
  Routing<double> routing;
  for (const Index e : {3, 1, 3, 1}) routing.add(0, e, 1.0);
  RoutingStats stats(4);
  stats.add(routing, 1);
  EXPECT_EQ(stats.load(3), 2);
  for (Index a = 0; a < 4; ++a) {
    for (Index b = 0; b < a; ++b) EXPECT_EQ(stats.pairs(a, b), a == 3 && b == 1 ? 4 : 0) << a << " and " << b;
  }
}

/// One token with these logits that goes to expert 0.
RoutingStats stats_of(const std::vector<double>& logits, Score score = Score::softmax) {
  Routing<double> routing;
  routing.logits = logits;
  routing.add(0, 0, 1.0);
  RoutingStats stats(Index(logits.size()), {.score = score});
  stats.add(routing, 1);
  return stats;
}

TEST(RoutingStats, ATokenWithANanIsLeftOutAndCounted) {
  for (const Score score : {Score::softmax, Score::sigmoid, Score::sqrt_softplus}) {
    for (const std::size_t num_experts : {1U, 2U, 8U, 17U}) {
      for (std::size_t at = 0; at < num_experts; ++at) {
        std::vector<double> logits(num_experts, 1), healthy = logits;
        logits[at] = nan;
        healthy[0] = 3;
        RoutingStats stats = stats_of(logits, score);
        EXPECT_EQ(stats.num_nan_tokens(), 1);
        EXPECT_TRUE(std::isnan(stats.mean_entropy()) && std::isnan(stats.mean_margin()));
        EXPECT_EQ(stats.load(0), 1);  // it was routed all the same

        stats += stats_of(healthy, score);
        EXPECT_EQ(stats.num_tokens(), 2);
        EXPECT_EQ(stats.mean_entropy(), stats_of(healthy, score).mean_entropy());
        EXPECT_TRUE(num_experts == 1 || stats.mean_margin() == 2);
      }
    }
  }
}

TEST(RoutingStats, InfiniteLogitsAreLimits) {
  for (const Score score : {Score::softmax, Score::sqrt_softplus}) {
    const RoutingStats shared = stats_of({inf, 1, inf, -inf}, score);
    EXPECT_EQ(shared.mean_probability(0), 0.5);
    EXPECT_EQ(shared.mean_probability(1), 0);
    EXPECT_DOUBLE_EQ(shared.mean_entropy(), std::log(2.0));
    EXPECT_EQ(shared.mean_margin(), 0);  // of two at +∞
  }
  const RoutingStats masked = stats_of({2, -inf, -inf});
  EXPECT_EQ(masked.mean_entropy(), 0);
  EXPECT_TRUE(std::isnan(masked.mean_margin()));  // infinite: left out
  for (const Score score : {Score::softmax, Score::sigmoid, Score::sqrt_softplus}) {
    const RoutingStats none = stats_of(std::vector<double>(5, -inf), score);
    EXPECT_DOUBLE_EQ(none.entropy_share(), 1);
    EXPECT_DOUBLE_EQ(none.mean_probability(3), 0.2);
    EXPECT_EQ(none.mean_margin(), 0);
  }
}

TEST(RoutingStats, EqualLogitsAreEvenAndScoresThatUnderflowToo) {
  for (const double logit : {0.0, -1e30, 1e30, -2000.0}) {
    for (const Score score : {Score::softmax, Score::sigmoid, Score::sqrt_softplus}) {
      for (const std::size_t num_experts : {1U, 2U, 9U, 64U}) {
        const RoutingStats stats = stats_of(std::vector<double>(num_experts, logit), score);
        EXPECT_NEAR(stats.entropy_share(), 1, tolerance<double>(1)) << logit << ", score " << int(score);
        EXPECT_NEAR(stats.mean_probability(0), 1 / double(num_experts), tolerance<double>(1));
        EXPECT_EQ(stats.num_nan_tokens(), 0);
        EXPECT_TRUE(num_experts == 1 || stats.min_margin() == 0);
      }
    }
  }
}

TEST(RoutingStats, OfNothingAllMeansAreNan) {
  RoutingStats stats(3);
  stats.add(Routing<float>{}, 0);
  stats.add(Routing<double>{}, 0);
  for (const double mean : {stats.routes_per_token(), stats.drop_rate(), stats.drop_rate(2), stats.load_peak(),
                            stats.load_variation(), stats.mean_probability(0), stats.mean_entropy(),
                            stats.entropy_share(), stats.mean_margin(), stats.min_margin()}) {
    EXPECT_TRUE(std::isnan(mean)) << mean;
  }
  EXPECT_EQ(stats.num_dead_experts(), 3);

  RoutingStats single(1);
  single.add(Routing<float>{}, 0);
  EXPECT_TRUE(std::isnan(single.entropy_share()));

  stats.add(Routing<float>{}, 5);  // tokens that went nowhere
  EXPECT_EQ(stats.routes_per_token(), 0);
}

TEST(RoutingStats, MergedPartsAreOnePass) {
  Random random(13);
  for (const Kind& kind : grid()) {
    if (!kind.logits) continue;
    RoutingStats all(kind.num_experts), one(kind.num_experts), other(kind.num_experts), sent(kind.num_experts);
    for (int batch = 0; batch < 4; ++batch) {
      const auto routing = random_routing<float>(kind, random);
      all.add(routing, kind.num_tokens);
      (batch % 2 == 0 ? one : other).add(routing, kind.num_tokens);
    }
    // As MPI_Allreduce does it: plain numbers, from all sides.
    for (const RoutingStats* part : {&one, &other}) {
      for (std::size_t i = 0; i < sent.sums().size(); ++i) sent.sums()[i] += part->sums()[i];
      for (std::size_t i = 0; i < sent.minima().size(); ++i) {
        sent.minima()[i] = std::min(sent.minima()[i], part->minima()[i]);
      }
    }
    one += other;
    EXPECT_TRUE(std::equal(one.sums().begin(), one.sums().end(), sent.sums().begin()));
    EXPECT_EQ(one.minima()[0], sent.minima()[0]);
    EXPECT_EQ(one.minima()[0], all.minima()[0]);
    for (std::size_t i = 0; i < all.sums().size(); ++i) {
      if (all.sums()[i] == std::floor(all.sums()[i])) {
        EXPECT_EQ(one.sums()[i], all.sums()[i]) << "a count, number " << i;
      } else {
        EXPECT_NEAR(one.sums()[i], all.sums()[i], tolerance<double>(all.sums()[i])) << "number " << i;
      }
    }
  }
}

TEST(RoutingStats, ClearedTheyAreNew) {
  Random random(14);
  const Kind kind{9, 5, 2, true, true, true};
  RoutingStats stats(9);
  stats.add(random_routing<float>(kind, random), 5);
  stats.clear();
  EXPECT_EQ(std::vector<double>(stats.sums().begin(), stats.sums().end()), std::vector<double>(stats.sums().size()));
  EXPECT_EQ(stats.minima()[0], inf);
}

TEST(RoutingStats, PairsAreCountedWhereThereAreNotTooManyExperts) {
  EXPECT_TRUE(RoutingStats(256).counts_pairs());
  EXPECT_FALSE(RoutingStats(257).counts_pairs());
  EXPECT_LT(RoutingStats(257).sums().size(), 1000U);
  EXPECT_TRUE(RoutingStats(512, {.pairs_up_to = 512}).counts_pairs());
  RoutingStats without(4, {.pairs_up_to = 0});
  Random random(15);
  without.add(random_routing<float>({4, 6, 2, true, true, false}, random), 6);
  EXPECT_EQ(without.total_load(), 12);
  EXPECT_FALSE(std::isnan(without.mean_margin()));
  EXPECT_EQ(test::error_of([&] { static_cast<void>(without.pairs(0, 1)); }),
            "RoutingStats: pairs are not counted for so many experts: see RoutingStatsOptions");
}

TEST(RoutingStats, WhatIsMaskedIsNotCounted) {
  Random random(17);
  const Index num_experts = 7, num_tokens = 23;
  const auto all = random_routing<float>({num_experts, num_tokens, 3, true, true, true}, random);
  std::vector<std::uint8_t> mask;
  Routing<float> some;
  for (Index t = 0; t < num_tokens; ++t) {
    mask.push_back(std::uint8_t(t % 3 != 1));
    if (t % 3 == 1) continue;
    const auto* const logits = all.logits.data() + t * num_experts;
    some.logits.insert(some.logits.end(), logits, logits + num_experts);
    for (std::size_t r = 0; r < all.token.size(); ++r) {
      if (all.token[r] != t) continue;
      some.add(Index(some.logits.size()) / num_experts - 1, all.expert[r], all.weight[r]);
      if (all.is_dropped(Index(r))) some.drop(some.size() - 1);
    }
  }
  some.dropped.resize(some.token.size());
  RoutingStats stats(num_experts), expected(num_experts);
  stats.add(all, num_tokens, mask);
  expected.add(some, Index(some.logits.size()) / num_experts);
  EXPECT_TRUE(std::equal(stats.sums().begin(), stats.sums().end(), expected.sums().begin()));
  EXPECT_EQ(stats.min_margin(), expected.min_margin());
  EXPECT_EQ(stats.num_tokens(), 15);
  EXPECT_EQ(test::error_of([&] { stats.add(all, num_tokens, TokenMask(mask).first(22)); }),
            "RoutingStats: mask.size() is 22, expected 23");
}

TEST(RoutingStats, AWarmAddDoesNotAllocate) {
  Random random(16);
  for (const Kind& kind : {Kind{9, 17, 2, true, true, true}, Kind{9, 17, 0, false, true, false},
                           Kind{300, 5, 2, true, true, false}, Kind{8, 33, 1, true, false, false}}) {
    const auto routing = random_routing<float>(kind, random);
    RoutingStats stats(kind.num_experts), other(kind.num_experts);
    stats.add(routing, kind.num_tokens);
    EXPECT_EQ(test::allocations_in([&] { stats.add(routing, kind.num_tokens); }), 0);
    EXPECT_EQ(test::allocations_in([&] { other += stats; }), 0);
    EXPECT_EQ(test::allocations_in([&] { stats.clear(); }), 0);
  }
}

TEST(RoutingStats, RefuseWhatDoesNotFitWithTheNumbers) {
  EXPECT_EQ(test::error_of([] { RoutingStats(0); }).substr(0, 42), "RoutingStats: num_experts is 0, expected 1");
  RoutingStats stats(4);
  Routing<float> routing;
  routing.add(0, 4, 1.0F);
  EXPECT_EQ(test::error_of([&] { stats.add(routing, 1); }), "Routing: route 0 sends token 0 of 1 to expert 4 of 4");
  routing.expert[0] = 3;
  routing.logits.resize(7);
  EXPECT_EQ(test::error_of([&] { stats.add(routing, 2); }), "RoutingStats: logits.size() is 7, expected 8");
  EXPECT_EQ(stats.num_tokens(), 0);  // what is refused leaves no trace
  EXPECT_EQ(test::error_of([&] { stats += RoutingStats(5); }), "RoutingStats: other.num_experts() is 5, expected 4");
  EXPECT_EQ(test::error_of([&] { stats += RoutingStats(4, {.pairs_up_to = 3}); }),
            "RoutingStats: other.counts_pairs() is 0, expected 1");
  EXPECT_EQ(test::error_of([&] { stats += RoutingStats(4, {.score = Score::sigmoid}); }),
            "RoutingStats: other.options().score is 2, expected 0");
}

}  // namespace
}  // namespace moe
