/// @file  Which rank holds which expert.
#pragma once

#include <algorithm>
#include <limits>
#include <numeric>
#include <tuple>
#include <vector>

#include "moe/core/check.hpp"
#include "moe/core/types.hpp"
#include "moe/telemetry/routing_stats.hpp"

namespace moe::inline MOE_TARGET::distributed {

/// An expert lives on one rank, or on several, which then share its tokens. A rank numbers its experts in ascending
/// order.
struct Placement {
  std::vector<std::vector<int>> ranks_of;  // of each expert, in ascending order

  Index num_experts() const { return static_cast<Index>(ranks_of.size()); }

  /// In ascending order; copies are on several ranks.
  std::vector<Index> experts_of(int rank) const {
    std::vector<Index> experts;
    for (Index e = 0; e < num_experts(); ++e) {
      if (std::ranges::count(ranks_of[std::size_t(e)], rank) > 0) experts.push_back(e);
    }
    return experts;
  }

  friend bool operator==(const Placement&, const Placement&) = default;  ///< Are the same experts on the same ranks?
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
    placement.ranks_of.resize(std::size_t(end), {rank});
  }
  return placement;
}

/// How many copies each expert should have, if `spare` are to be made beside the first ones: always another one of that
/// with the largest load a copy, until each has one on every rank.
/// @param load  of each expert, in any unit
inline std::vector<int> copies_by_load(const std::vector<double>& load, int num_ranks, Index spare) {
  std::vector<int> copies(load.size(), 1);
  for (Index i = 0; i < spare; ++i) {
    std::size_t hottest = load.size();
    for (std::size_t e = 0; e < load.size(); ++e) {
      if (copies[e] == num_ranks) continue;
      if (hottest == load.size() || load[e] / copies[e] > load[hottest] / copies[hottest]) hottest = e;
    }
    if (hottest == load.size()) break;
    ++copies[hottest];
  }
  return copies;
}

/// Even work from measured load: the copies of the busiest experts first, each to the rank with the least load so far
/// among those that hold fewer than ⌈copies / ranks⌉, so that memory stays even, too. (Graham 1969: without copies, the
/// greedy order is at most 4/3 of the best possible, but for that limit.)
/// @param load   of each expert, in any unit
/// @param spare  how many copies of the hottest experts there shall be beside the first: copies_by_load()
/// @throws std::invalid_argument unless num_ranks ≥ 1 and spare ≥ 0.
inline Placement place_by_load(const std::vector<double>& load, int num_ranks, Index spare = 0) {
  require_between(1, num_ranks, std::numeric_limits<int>::max(), "place_by_load: num_ranks");
  require_between(0, spare, std::numeric_limits<Index>::max(), "place_by_load: spare");
  const std::vector<int> copies = copies_by_load(load, num_ranks, spare);
  const auto load_of_copy = [&](std::size_t e) { return load[e] / copies[e]; };
  std::vector<std::size_t> order(load.size());
  std::iota(order.begin(), order.end(), std::size_t(0));
  std::ranges::stable_sort(order, std::ranges::greater{}, load_of_copy);

  struct Rank {
    double load = 0;
    Index experts = 0;
    std::size_t newest = std::numeric_limits<std::size_t>::max();  // of its experts
  };
  const Index room = (std::accumulate(copies.begin(), copies.end(), Index(0)) + num_ranks - 1) / num_ranks;
  std::vector<Rank> ranks(std::size_t(num_ranks), Rank{});
  Placement placement{std::vector<std::vector<int>>(load.size())};
  for (const std::size_t e : order) {
    auto& holders = placement.ranks_of[e];
    for (int copy = 0; copy < copies[e]; ++copy) {
      const auto best = std::ranges::min_element(ranks, {}, [&](const Rank& rank) {
        return std::tuple(rank.newest == e, rank.experts >= room, rank.load, rank.experts);
      });
      best->load += load_of_copy(e);
      ++best->experts;
      best->newest = e;
      holders.push_back(int(best - ranks.begin()));
    }
    std::ranges::sort(holders);
  }
  return placement;
}

/// The same from what was measured. Ranks that measured apart first merge what they measured: all_reduce().
inline Placement place_by_load(const RoutingStats& measured, int num_ranks, Index spare = 0) {
  std::vector<double> load;
  for (Index e = 0; e < measured.num_experts(); ++e) load.push_back(double(measured.load(e)));
  return place_by_load(load, num_ranks, spare);
}

}  // namespace moe::inline MOE_TARGET::distributed
