/// @file  Which rank holds which expert.
#pragma once

#include <algorithm>
#include <limits>
#include <numeric>
#include <string>
#include <vector>

#include "moe/check.hpp"
#include "moe/telemetry/routing_stats.hpp"
#include "moe/types.hpp"

namespace moe::distributed {

/// A rank numbers its experts in ascending order.
struct Placement {
  std::vector<int> rank_of;  // of each expert

  Index num_experts() const { return static_cast<Index>(rank_of.size()); }

  std::vector<Index> experts_of(int rank) const {
    std::vector<Index> experts;
    for (Index e = 0; e < num_experts(); ++e) {
      if (rank_of[std::size_t(e)] == rank) experts.push_back(e);
    }
    return experts;
  }

  friend bool operator==(const Placement&, const Placement&) = default;
};

/// Each rank a block of neighbours; blocks differ by one expert at most, and with fewer experts than ranks some are
/// empty.
/// @throws std::invalid_argument unless num_experts ≥ 1 and num_ranks ≥ 1.
inline Placement place_in_blocks(Index num_experts, int num_ranks) {
  require_between(1, num_experts, std::numeric_limits<Index>::max(), "place_in_blocks: num_experts");
  require_between(1, num_ranks, std::numeric_limits<int>::max(), "place_in_blocks: num_ranks");
  Placement placement;
  for (int rank = 0; rank < num_ranks; ++rank) {
    const Index end = num_experts * (rank + 1) / num_ranks;
    placement.rank_of.resize(std::size_t(end), rank);
  }
  return placement;
}

/// Even work from measured load: the busiest expert first, each to the rank with the least load so far, among those
/// that hold fewer than ⌈experts / ranks⌉, so that memory stays even, too. (Graham 1969: with the greedy order, at most
/// 4/3 of the best possible, but for that limit.) Ranks that measured apart first merge what they measured:
/// merge_over_ranks().
/// @throws std::invalid_argument unless num_ranks ≥ 1.
inline Placement place_by_load(const RoutingStats& measured, int num_ranks) {
  require_between(1, num_ranks, std::numeric_limits<int>::max(), "place_by_load: num_ranks");
  const Index num_experts = measured.num_experts(), room = (num_experts + num_ranks - 1) / num_ranks;
  std::vector<Index> order(std::size_t(num_experts), 0);
  std::iota(order.begin(), order.end(), Index(0));
  std::ranges::stable_sort(order, std::ranges::greater{}, [&](Index e) { return measured.load(e); });

  struct Rank {
    Index load = 0, experts = 0;
  };
  std::vector<Rank> ranks(std::size_t(num_ranks), Rank{});
  Placement placement{std::vector<int>(std::size_t(num_experts), 0)};
  for (const Index e : order) {
    const auto least = std::ranges::min_element(ranks, {}, [&](const Rank& rank) {
      return std::pair(rank.experts >= room, std::pair(rank.load, rank.experts));
    });
    least->load += measured.load(e);
    ++least->experts;
    placement.rank_of[std::size_t(e)] = int(least - ranks.begin());
  }
  return placement;
}

}  // namespace moe::distributed
