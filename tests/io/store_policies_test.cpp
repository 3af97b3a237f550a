#include "moe/io/store/policies.hpp"

#include <algorithm>
#include <random>
#include <set>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "errors.hpp"

namespace moe::io {

using Experts = std::vector<ExpertId>;

Experts of_layer(Index layer, const std::vector<Index>& experts) {
  Experts all;
  for (const Index e : experts) all.push_back({layer, e});
  return all;
}

/// Experts in memory, all of one size, as a store would hold them.
struct Room {
  Index slots;
  AnyPolicy policy;
  std::set<ExpertId> resident = {};
  Index hits = 0, misses = 0;

  /// A call of a layer; of more experts than there are slots, one at a time.
  void call(Index layer, const std::vector<Index>& its) {
    const Experts experts = of_layer(layer, its);
    const bool fits = std::ssize(experts) <= slots;
    policy.used(experts, layer);
    Experts misses_of_call;
    for (const ExpertId& id : experts) {
      if (!resident.contains(id)) misses_of_call.push_back(id);
    }
    hits += std::ssize(experts) - std::ssize(misses_of_call), misses += std::ssize(misses_of_call);
    for (const ExpertId& id : misses_of_call) {
      if (std::ssize(resident) == slots) {
        Experts candidates;
        for (const ExpertId& held : resident) {
          if (!fits || !std::ranges::count(experts, held)) candidates.push_back(held);
        }
        const ExpertId victim = policy.victim(candidates, layer);
        ASSERT_TRUE(std::ranges::count(candidates, victim)) << victim.layer << ", " << victim.expert;
        resident.erase(victim);
      }
      resident.insert(id);
    }
  }
};

std::vector<std::pair<std::string, AnyPolicy>> policies() {
  const Experts some = of_layer(1, {0, 2});
  return {{"DecayedCounts", DecayedCounts()},
          {"Lru", Lru()},
          {"Pinned", Pinned(some)},
          {"Pinned, Lru", Pinned(some, Lru())}};
}

/// Tokens that stay with their experts for a while, and prefer some; seed 20 and so on.
std::vector<std::vector<Index>> walk_choices(Index tokens, Index layers, Index num_experts, Index top_k,
                                             unsigned seed) {
  std::mt19937 bits(seed);
  const auto below = [&](Index end) { return Index(bits() % std::uint32_t(end)); };
  std::vector<std::vector<Index>> calls;
  for (Index t = 0; t < tokens; ++t) {
    for (Index l = 0; l < layers; ++l) {
      std::set<Index> chosen;
      if (t > 0) {
        for (const Index e : calls[std::size_t((t - 1) * layers + l)]) {
          if (below(3) == 0) chosen.insert(e);
        }
      }
      while (std::ssize(chosen) < top_k) chosen.insert(below(2) == 0 ? below(num_experts) : below(num_experts / 4));
      calls.emplace_back(chosen.begin(), chosen.end());
    }
  }
  return calls;
}

constexpr Index layers = 5, num_experts = 16, top_k = 3;

Room run(const AnyPolicy& policy, Index slots, const std::vector<std::vector<Index>>& calls) {
  Room room{slots, policy};
  for (std::size_t c = 0; c < calls.size(); ++c) room.call(Index(c) % layers, calls[c]);
  return room;
}

TEST(EvictionPolicy, AnswersWithTheSameCandidateInWhateverOrderTheyStand) {
  std::mt19937 bits(20);
  const auto calls = walk_choices(40, layers, num_experts, top_k, 21);
  for (auto& [name, policy] : policies()) {
    for (std::size_t c = 0; c < calls.size(); ++c) {
      const Index layer = Index(c) % layers;
      policy.used(of_layer(layer, calls[c]), layer);
      Experts candidates;
      for (Index l = 0; l < layers + 1; ++l) {
        for (Index e = 0; e < num_experts + 1; ++e) {
          if (bits() % 3 == 0) candidates.push_back({l, e});  // some of them never used
        }
      }
      if (candidates.empty()) continue;
      AnyPolicy copy = policy;
      const ExpertId victim = policy.victim(candidates, layer);
      EXPECT_TRUE(std::ranges::count(candidates, victim)) << name;
      std::ranges::shuffle(candidates, bits);
      EXPECT_EQ(policy.victim(candidates, layer), victim) << name;
      EXPECT_EQ(copy.victim(candidates, layer), victim) << name << ", copied";
    }
  }
}

TEST(EvictionPolicy, TakesOneCandidateAndRefusesNone) {
  for (auto& named : policies()) {
    const std::string& name = named.first;
    AnyPolicy& policy = named.second;
    const Experts one = of_layer(7, {300});
    EXPECT_EQ(policy.victim(one, 2), one[0]) << name << ", before any call";
    EXPECT_EQ(test::error_of([&] { policy.victim({}, 0); }), "EvictionPolicy: 0 candidates, expected at least 1");
    policy.used({}, 9);
    EXPECT_EQ(policy.victim(one, 9), one[0]) << name;
  }
}

TEST(EvictionPolicy, EvictsNothingWhereEverythingFits) {
  const auto calls = walk_choices(30, layers, num_experts, top_k, 22);
  std::set<std::pair<Index, Index>> touched;
  for (std::size_t c = 0; c < calls.size(); ++c) {
    for (const Index e : calls[c]) touched.emplace(Index(c) % layers, e);
  }
  for (const auto& [name, policy] : policies()) {
    EXPECT_EQ(run(policy, layers * num_experts, calls).misses, std::ssize(touched)) << name;
  }
}

TEST(Lru, EvictsWhatWasUsedLongestAgo) {
  Lru policy;
  policy.used(of_layer(0, {1, 2}), 0);
  policy.used(of_layer(1, {0}), 1);
  policy.used(of_layer(0, {2}), 0);
  Experts candidates{{0, 1}, {0, 2}, {1, 0}};
  for (const ExpertId& expected : {ExpertId{0, 1}, ExpertId{1, 0}, ExpertId{0, 2}}) {
    EXPECT_EQ(policy.victim(candidates, 1), expected);
    std::erase(candidates, expected);
  }
}

TEST(DecayedCounts, EvictsOfEquallyUsedExpertsThatOfTheLayerThatComesLast) {
  DecayedCounts policy;
  for (int token = 0; token < 3; ++token) {
    for (Index l = 0; l < 4; ++l) policy.used(of_layer(l, {0}), l);
  }
  policy.used(of_layer(0, {0}), 0);
  policy.used(of_layer(1, {0}), 1);
  const Experts candidates{{0, 0}, {2, 0}, {3, 0}};  // the next are 2, 3, then 0
  EXPECT_EQ(policy.victim(candidates, 1), (ExpertId{0, 0}));
}

TEST(DecayedCounts, FindsExpertsInMemoryBelowOneWalk) {
  const auto calls = walk_choices(200, layers, num_experts, top_k, 23);
  const auto all_in_turn = std::vector<std::vector<Index>>(200 * layers, {0, 1, 2});
  for (Index slots = top_k + 1; slots < layers * top_k; ++slots) {
    EXPECT_GT(run(DecayedCounts(), slots, calls).hits, 0) << slots;
    // The same experts in each token: as many as fit beside those of one call could stay.
    if (slots <= (layers - 1) * top_k) {
      EXPECT_EQ(run(Lru(), slots, all_in_turn).hits, 0) << slots;
    }
    const double stay = double(slots - top_k) / double(layers * top_k);
    EXPECT_GE(double(run(DecayedCounts(), slots, all_in_turn).hits), 0.9 * stay * double(200 * layers * top_k))
        << slots;
  }
}

TEST(DecayedCounts, KeepsWhatSingleTokensNeedThroughALargeBatch) {
  constexpr Index many = 64, tokens = 100, later = 10;
  const auto calls = walk_choices(tokens + later, layers, many, top_k, 24);
  std::vector<Index> all;
  for (Index e = 0; e < many; ++e) all.push_back(e);
  const auto hits_later = [&](const AnyPolicy& policy, Index slots, bool batch) {
    Room room = run(policy, slots, {calls.begin(), calls.end() - later * layers});
    for (Index l = 0; batch && l < layers; ++l) room.call(l, all);
    const Index before = room.hits;
    for (std::size_t c = tokens * layers; c < calls.size(); ++c) room.call(Index(c) % layers, calls[c]);
    return room.hits - before;
  };
  Index lost = 0, lost_by_lru = 0;
  for (const Index slots : {top_k * layers, 2 * top_k * layers, 4 * top_k * layers, 8 * top_k * layers}) {
    const Index without = hits_later(DecayedCounts(), slots, false);
    lost += without - hits_later(DecayedCounts(), slots, true);
    EXPECT_GE(hits_later(DecayedCounts(), slots, true), without - without / 10) << slots << " slots";
    lost_by_lru += hits_later(Lru(), slots, false) - hits_later(Lru(), slots, true);
  }
  EXPECT_LT(3 * lost, lost_by_lru);
}

TEST(DecayedCounts, CountsCallsOfItsLayer) {
  // Whether other layers were called more often says nothing: a speculative head, a layer that is tried alone.
  DecayedCounts policy;
  policy.used(of_layer(0, {0}), 0);
  for (int call = 0; call < 50; ++call) policy.used(of_layer(1, {1}), 1);
  policy.used(of_layer(1, {2}), 1);
  policy.used(of_layer(1, {1}), 1);
  EXPECT_EQ(policy.victim(Experts{{0, 0}, {1, 2}}, 1), (ExpertId{1, 2}));
}

TEST(DecayedCounts, ForgetsAndNeverOverflows) {
  DecayedCounts policy;
  for (int call = 0; call < 3000; ++call) policy.used(of_layer(0, {0}), 0);
  for (int call = 0; call < 40; ++call) policy.used(of_layer(0, {1}), 0);
  EXPECT_EQ(policy.victim(Experts{{0, 0}, {0, 1}}, 1), (ExpertId{0, 0}));
  for (int call = 0; call < 2000; ++call) policy.used(of_layer(0, {2}), 0);
  EXPECT_EQ(policy.victim(Experts{{0, 0}, {0, 3}}, 1), (ExpertId{0, 0})) << "as if it had never been used";
}

TEST(Pinned, KeepsItsExpertsWhileThereIsAnyOther) {
  Pinned policy(of_layer(0, {0, 1}), Lru());
  policy.used(of_layer(0, {0, 1}), 0);
  policy.used(of_layer(0, {2, 3}), 0);
  policy.used(of_layer(0, {2}), 0);
  Experts candidates = of_layer(0, {0, 1, 2, 3});
  for (const Index expected : {3, 2, 0, 1}) {
    EXPECT_EQ(policy.victim(candidates, 0), (ExpertId{0, expected}));
    std::erase(candidates, ExpertId{0, expected});
  }
}

TEST(AnyPolicy, IsDecayedCountsUnlessItIsTold) {
  const auto calls = walk_choices(100, layers, num_experts, top_k, 25);
  const Room of_default = run({}, 20, calls), of_counts = run(DecayedCounts(), 20, calls);
  EXPECT_EQ(of_default.hits, of_counts.hits);
  EXPECT_EQ(of_default.resident, of_counts.resident);
  EXPECT_NE(run(Lru(), 20, calls).resident, of_counts.resident);
}

}  // namespace moe::io
