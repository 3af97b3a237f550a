#include "../../benchmarks/cluster_model.hpp"

#include <cmath>
#include <map>
#include <set>
#include <stdexcept>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "../../benchmarks/choices.hpp"
#include "../../benchmarks/cluster_plan.hpp"
#include "../errors.hpp"

namespace moe::bench {

using distributed::place_by_load;
using distributed::place_in_blocks;
using distributed::Placement;

constexpr Index all_tokens = 1 << 20;

/// Bytes that each rank sends and tokens that each expert has on each rank, counted token by token in sets.
struct Counted {
  std::vector<double> bytes;
  std::map<std::pair<int, int>, double> tokens;  // of (rank, expert)
};
Counted count(const Choices& choices, const Placement& placement, int num_ranks, Index tokens, const Wire& wire) {
  Counted counted{std::vector<double>(std::size_t(num_ranks), Wire::parcel * (num_ranks - 1)), {}};
  for (int home = 0; home < num_ranks; ++home) {
    std::map<int, int> seen;  // how often the rank's tokens have asked an expert before
    for (Index t = 0; t < tokens; ++t) {
      std::multiset<int> asked;
      for (const int e : choices.of(home * tokens + t)) {
        const auto& holders = placement.ranks_of[std::size_t(e)];
        const int there = holders[std::size_t(home + seen[e]++) % holders.size()];
        asked.insert(there);
        ++counted.tokens[{there, e}];
      }
      for (const int there : std::set(asked.begin(), asked.end())) {
        if (there == home) continue;
        const auto routes = double(asked.count(there));
        counted.bytes[std::size_t(home)] += wire.column + routes * Wire::route;
        counted.bytes[std::size_t(there)] += (wire.summed_answers ? 1 : routes) * wire.column;
      }
    }
  }
  return counted;
}

std::vector<Placement> placements(const Choices& choices, Index num_experts, int num_ranks) {
  const auto load = load_of(choices, num_experts);
  return {place_in_blocks(num_experts, num_ranks), place_by_load(load, num_ranks), place_by_load(load, num_ranks, 3),
          place_by_load(load, num_ranks, 100)};
}

TEST(ClusterModel, BytesAndTokensAreThoseThatSetsCount) {
  for (const Index num_experts : {1, 3, 8}) {
    for (const int num_ranks : {1, 2, 3, 8, 9}) {
      for (const Index tokens : {1, 7, 64}) {
        const auto choices = draw_zipf(num_experts, std::min<Index>(num_experts, 3), 1, num_ranks * tokens);
        for (const Placement& placement : placements(choices, num_experts, num_ranks)) {
          for (const bool summed : {false, true}) {
            const Wire wire{.column = 32, .summed_answers = summed};
            const auto ranks = divide_work(choices, 0, placement, num_ranks, tokens, all_tokens);
            auto counted = count(choices, placement, num_ranks, tokens, wire);
            ASSERT_EQ(std::ssize(ranks), num_ranks);
            for (int rank = 0; rank < num_ranks; ++rank) {
              const RankWork& work = ranks[std::size_t(rank)];
              EXPECT_EQ(wire.bytes_sent(work, num_ranks), counted.bytes[std::size_t(rank)]);
              const auto held = placement.experts_of(rank);
              ASSERT_EQ(work.tokens.size(), held.size());
              for (std::size_t i = 0; i < held.size(); ++i) {
                EXPECT_EQ(work.tokens[i], (counted.tokens[{rank, int(held[i])}]));
              }
            }
          }
        }
      }
    }
  }
}

TEST(ClusterModel, WhatIsSentArrives) {
  const auto choices = draw_zipf(8, 3, 1, 500);
  for (const Placement& placement : placements(choices, 8, 5)) {
    double columns = 0, routes = 0, own = 0, tokens = 0;
    for (const RankWork& rank : divide_work(choices, 0, placement, 5, 100, all_tokens)) {
      columns += rank.columns_sent - rank.columns_received;
      routes += rank.routes_sent - rank.routes_received;
      own += rank.routes_to_all();
      for (const double of_expert : rank.tokens) tokens += of_expert;
      EXPECT_LE(rank.columns_sent, rank.routes_sent);
    }
    EXPECT_EQ(columns, 0);
    EXPECT_EQ(routes, 0);
    EXPECT_EQ(own, 5 * 100 * 3);
    EXPECT_EQ(tokens, 5 * 100 * 3);
  }
}

TEST(ClusterModel, OneRankSendsNothing) {
  const auto ranks = divide_work(draw_zipf(8, 2, 1, 64), 0, place_in_blocks(8, 1), 1, 64, all_tokens);
  const Model model{{ExpertTime({{1, 1e-3}}), 1e9}, {}, {.column = 32}, 32};
  EXPECT_EQ(model.wire.bytes_sent(ranks[0], 1), 0);
  EXPECT_EQ(model(ranks).exchange, 0);
  EXPECT_EQ(imbalance(ranks), 1);
}

/// Token t asks experts t and t + 1, modulo num_experts.
Choices in_turn(Index num_experts) {
  Choices choices;
  for (Index t = 0; t < num_experts; ++t) {
    choices.expert.insert(choices.expert.end(), {int(t), int((t + 1) % num_experts)});
    choices.first.push_back(std::ssize(choices.expert));
  }
  return choices;
}

TEST(ClusterModel, EqualLoadHasNoImbalance) {
  for (const int num_ranks : {1, 2, 4, 8}) {
    EXPECT_EQ(imbalance(divide_work(in_turn(8), 0, place_in_blocks(8, num_ranks), num_ranks, 16, all_tokens)), 1);
  }
  EXPECT_EQ(imbalance(divide_work(in_turn(8), 0, place_in_blocks(8, 16), 16, 16, all_tokens)), 2) << "half are idle";
}

TEST(ClusterModel, FewTokensLookedAtStandForAll) {
  const auto all = divide_work(in_turn(8), 0, place_in_blocks(8, 4), 4, 800, all_tokens);
  const auto some = divide_work(in_turn(8), 0, place_in_blocks(8, 4), 4, 800, 4 * 8);
  for (std::size_t rank = 0; rank < 4; ++rank) {
    EXPECT_EQ(some[rank].tokens, all[rank].tokens);
    EXPECT_EQ(some[rank].columns_sent, all[rank].columns_sent);
    EXPECT_EQ(some[rank].routes_received, all[rank].routes_received);
  }
}

TEST(ClusterModel, CopiesDoNotRaiseTheBusiestLoad) {
  for (const double exponent : {0.0, 0.7, 2.0}) {
    const auto choices = draw_zipf(16, 2, exponent, 1 << 15);
    const auto load = load_of(choices, 16);
    for (const int num_ranks : {2, 16, 40}) {
      // To a twentieth: the order is greedy, and loads of few tokens are not the mean.
      const Index tokens = (1 << 15) / num_ranks;
      double before = double(num_ranks);
      for (const Index spare : {0, num_ranks, 4 * num_ranks}) {
        const auto placement = place_by_load(load, num_ranks, spare);
        const double now = imbalance(divide_work(choices, 0, placement, num_ranks, tokens, all_tokens));
        EXPECT_LE(now, 1.05 * before) << exponent << ", " << num_ranks << " ranks, " << spare << " copies";
        before = now;
      }
    }
  }
}

TEST(ClusterModel, ExpertsTakeStraightLinesBetweenPoints) {
  const ExpertTime time({{1, 10}, {8, 24}, {16, 64}});
  for (const auto& [tokens, seconds] : {std::pair{0.0, 0.0},
                                        {0.5, 10.0},
                                        {1.0, 10.0},
                                        {4.5, 17.0},
                                        {8.0, 24.0},
                                        {12.0, 44.0},
                                        {16.0, 64.0},
                                        {32.0, 128.0}}) {
    EXPECT_DOUBLE_EQ(time(tokens), seconds) << tokens;
  }
  EXPECT_THROW(ExpertTime({}), std::invalid_argument);
  EXPECT_THROW(ExpertTime({{2, 1}}), std::invalid_argument);
}

TEST(ClusterModel, ALimitIsReadingThenArithmetic) {
  const auto time = ExpertTime::from_limits(/*bytes=*/100, /*flops_a_token=*/50, /*bytes_a_second=*/10, /*flops=*/25);
  EXPECT_EQ(time(1), 10);  // 100 / 10
  EXPECT_EQ(time(5), 10);  // 5 · 50 / 25
  EXPECT_EQ(time(6), 12);
  EXPECT_EQ(ExpertTime::from_limits(1, 50, 10, 25)(3), 6) << "never limited by reading";
}

TEST(ClusterModel, TheExchangeIsItsFormula) {
  const Model model{
      {ExpertTime({{1, 1}}), 1e9}, {.latency = 1, .message = 0.1, .bytes_a_second = 8}, {.column = 32}, 32};
  // Two ranks with an expert each; each token asks both: a column and a route to the other, and an answer back.
  const auto ranks = divide_work(in_turn(2), 0, place_in_blocks(2, 2), 2, 3, all_tokens);
  const double few_bytes = 1 + 0.1, routes = 1 + 0.1 + 3 * 16 / 8.0, columns = 1 + 0.1 + 3 * 32 / 8.0;
  EXPECT_DOUBLE_EQ(model(ranks).exchange, 2 * few_bytes + routes + 2 * columns);
  EXPECT_EQ(model(ranks).experts, 6);  // three tokens of each rank
}

TEST(ClusterModel, RanksThatShareACoreTakeTurns) {
  Model model{{ExpertTime({{1, 1}}), 1e9}, {.bytes_a_second = 1}, {}, 32};
  EXPECT_EQ(model.all_done({5, 3, 4}), 5);
  model.shared_cores = 2;
  EXPECT_EQ(model.all_done({5, 3, 4}), 9);
  model.shared_cores = 1;
  EXPECT_EQ(model.all_done({5, 3, 4}), 12);
}

TEST(Choices, ATokenDrawsDifferentExperts) {
  for (const double exponent : {0.0, 1.0, 10.0}) {
    const auto choices = draw_zipf(5, 5, exponent, 20);
    for (Index t = 0; t < 20; ++t) {
      const auto of = choices.of(t);
      EXPECT_EQ(std::set(of.begin(), of.end()).size(), 5u);
    }
  }
}

TEST(Choices, FollowZipfsLaw) {
  const Index tokens = 1 << 16;
  auto load = load_of(draw_zipf(4, 1, 2, tokens), 4);
  std::ranges::sort(load, std::ranges::greater{});
  const double all = 1 + 1.0 / 4 + 1.0 / 9 + 1.0 / 16;
  for (int i = 0; i < 4; ++i) {
    const double p = 1.0 / ((i + 1) * (i + 1)) / all;
    EXPECT_NEAR(load[std::size_t(i)], p * tokens, 5 * std::sqrt(p * (1 - p) * tokens));  // five standard deviations
  }
}

TEST(Choices, AreTheRoutesThatWereNotDropped) {
  Routing<float> routing;
  routing.add(0, 3, 1), routing.add(2, 1, 1), routing.add(0, 2, 1);
  routing.drop(1);
  const auto choices = choices_of(routing, 3, 4, "trace");
  EXPECT_EQ(choices.first, (std::vector<Index>{0, 2, 2, 2}));
  EXPECT_EQ(choices.expert, (std::vector{3, 2}));
  EXPECT_EQ(choices.of(3).size(), 2u) << "again from the first on";
  EXPECT_EQ(test::error_of([&] { choices_of(routing, 3, 3, "trace"); }),
            "Routing: route 0 sends token 0 of 3 to expert 3 of 3");
  EXPECT_EQ(test::error_of([] { choices_of({}, 0, 3, "trace"); }), "trace: has no tokens");
}

TEST(Planner, RecommendsCopiesOnlyWhereTheyPay) {
  const Model model{{ExpertTime({{1, 1e-3}}), 1e9}, {1e-6, 1e-7, 1e9}, {.column = 32}, 32};
  EXPECT_EQ(std::ssize(Planner(model, in_turn(8), 8, 64).plans(4)), 2) << "all experts alike";
  const auto plans = Planner(model, draw_zipf(8, 1, 2, 4096), 8, 256).plans(8);
  ASSERT_EQ(std::ssize(plans), 3);
  EXPECT_GT(plans[2].spare, 0);
  EXPECT_LT(plans[2].time.total(), plans[1].time.total());
  EXPECT_LT(plans[2].imbalance, plans[1].imbalance);
  EXPECT_EQ(Planner::spares(8, 3), (std::vector<Index>{0, 1, 2, 4}));
  EXPECT_EQ(Planner::spares(2, 4), (std::vector<Index>{0, 1, 2, 4}));
  EXPECT_EQ(Planner::spares(1, 2), (std::vector<Index>{0, 1}));
}

}  // namespace moe::bench
