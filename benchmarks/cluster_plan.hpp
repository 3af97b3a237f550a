/// @file  Which placement of the experts, for so many ranks.
#pragma once

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "choices.hpp"
#include "cluster_model.hpp"
#include "moe/core/types.hpp"
#include "moe/distributed/placement.hpp"

namespace moe::bench {

/// Of all ranks' tokens so many are looked at, at most.
inline constexpr Index most_looked_at = Index(1) << 18;

/// What a placement costs: means over calls with different tokens.
struct Plan {
  int num_ranks = 0;
  std::string placed;  // "in blocks", "by load", "with copies"
  Index spare = 0;     // copies beside the first
  distributed::Placement placement{};
  CallTime time{};
  double bytes = 0;      // that a rank sends to others: the mean of the ranks
  double imbalance = 0;  // see imbalance()
  Index experts = 0;     // on the rank that holds the most
};

/// Calls of a layer on a cluster, to be tried with any number of ranks.
class Planner {
 public:
  Planner(Model model, Choices choices, Index num_experts, Index tokens_a_rank)
      : model_(std::move(model)),
        choices_(std::move(choices)),
        load_(load_of(choices_, num_experts)),
        tokens_(tokens_a_rank) {}

  /// In blocks; by load, where that is another placement; and with copies, if these pay: the fewest of those tried with
  /// which a call takes at most 2 % more time than with any number of copies tried.
  std::vector<Plan> plans(int num_ranks) const {
    const Index num_experts = std::ssize(load_);
    std::vector<Plan> plans{measure("in blocks", 0, num_ranks, distributed::place_in_blocks(num_experts, num_ranks))};
    if (num_ranks == 1) return plans;
    std::vector<Plan> tried;
    for (const Index spare : spares(num_experts, num_ranks)) {
      tried.push_back(measure(spare == 0 ? "by load" : "with copies", spare, num_ranks,
                              distributed::place_by_load(load_, num_ranks, spare)));
    }
    const auto seconds = [](const Plan& plan) { return plan.time.total(); };
    const double best = seconds(*std::ranges::min_element(tried, {}, seconds));
    const auto enough = std::ranges::find_if(tried, [&](const Plan& plan) { return seconds(plan) <= 1.02 * best; });
    plans.push_back(tried.front());
    if (enough->spare > 0) plans.push_back(*enough);
    return plans;
  }

  /// Numbers of copies to try: none; 1, 2, 4, … up to two a rank; and as many as leave each rank with the same number
  /// of experts as the fullest one has anyway.
  static std::vector<Index> spares(Index num_experts, int num_ranks) {
    std::vector<Index> spares{0};
    for (Index spare = 1; spare <= 2 * num_ranks; spare *= 2) spares.push_back(spare);
    spares.push_back((num_experts + num_ranks - 1) / num_ranks * num_ranks - num_experts);
    std::ranges::sort(spares);
    spares.erase(std::unique(spares.begin(), spares.end()), spares.end());
    std::erase_if(spares, [&](Index spare) { return spare > num_experts * (num_ranks - 1); });
    return spares;
  }

 private:
  Plan measure(std::string placed, Index spare, int num_ranks, distributed::Placement placement) const {
    Plan plan{.num_ranks = num_ranks, .placed = std::move(placed), .spare = spare, .placement = std::move(placement)};
    const Index tokens = num_ranks * tokens_;
    const Index calls = std::clamp<Index>(std::min(choices_.num_tokens(), most_looked_at) / tokens, 1, 8);
    for (Index call = 0; call < calls; ++call) {
      const auto work = divide_work(choices_, call * tokens, plan.placement, num_ranks, tokens_, most_looked_at);
      plan.time = plan.time + 1.0 / double(calls) * model_(work);
      plan.imbalance += imbalance(work) / double(calls);
      for (const RankWork& rank : work) {
        plan.bytes += model_.wire.bytes_sent(rank, num_ranks) / double(calls * num_ranks);
        plan.experts = std::max(plan.experts, Index(std::ssize(rank.tokens)));
      }
    }
    return plan;
  }

  Model model_;
  Choices choices_;
  std::vector<double> load_;
  Index tokens_;
};

}  // namespace moe::bench
