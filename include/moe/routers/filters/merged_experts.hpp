/// @file  A router to experts of which some have become one.
#pragma once

#include <algorithm>
#include <cstddef>
#include <iterator>
#include <string>
#include <utility>
#include <vector>

#include "moe/core/check.hpp"
#include "moe/core/routing.hpp"
#include "moe/core/tokens.hpp"
#include "moe/core/types.hpp"
#include "moe/routers/filters/filtered_router.hpp"
#include "moe/runtime/workers.hpp"

namespace moe::inline MOE_TARGET {

/// Names the experts that those of a routing have become.
struct MergedExpertsFilter {
  std::vector<Index> merged;  // what number each expert has now
  Index num_experts;          // so many are left

  template <class Scalar>
  void apply(const Tokens<Scalar>&, Index, Routing<Scalar>& routing, Workers&) const {
    routing.logits.clear();
    const Index kept =
        for_each_route(routing, routing, [&](std::size_t from, std::size_t to, Index expert, bool joins) {
          routing.weight[to] = joins ? routing.weight[to] + routing.weight[from] : routing.weight[from];
          routing.token[to] = routing.token[from];
          routing.expert[to] = expert;
          if (!joins && !routing.dropped.empty()) routing.dropped[to] = routing.dropped[from];
        });
    routing.resize(kept);
    if (!routing.dropped.empty()) routing.dropped.resize(std::size_t(kept));
  }

  /// f(from, to, expert, joins) for each route of a routing: to which of the united ones it goes, the same or a lower
  /// one, with its expert now, and whether it joins what is there. Those before must have been written: so that
  /// `united` may be `routing`.
  /// @return how many there are
  template <class Scalar, class F>
  Index for_each_route(const Routing<Scalar>& routing, const Routing<Scalar>& united, const F& f) const {
    std::size_t kept = 0;
    for (std::size_t r = 0; r < routing.token.size(); ++r) {
      const Index expert = merged[std::size_t(routing.expert[r])];
      std::size_t to = kept;  // or one of the routes before it, of this token to this expert
      const bool may_join = routing.weight_on == WeightOn::output && !routing.is_dropped(Index(r));
      for (std::size_t i = may_join ? kept : 0; i-- > 0 && united.token[i] == routing.token[r];) {
        if (united.expert[i] == expert && !united.is_dropped(Index(i))) to = i;
      }
      f(r, to, expert, to < kept);
      kept += to == kept;
    }
    return Index(kept);
  }
};

/// Routes as before the experts were merged, then names the experts that they have become. Where a token's routes, side
/// by side, lead to the same one, they become one route that counts for their sum: w₁·f(x) + w₂·f(x) = (w₁ + w₂)·f(x).
/// (Not so where a weight is on the input.) No logits are left: they were those of other experts.
///
/// Li et al. 2024, "Merge, Then Compress" (MC-SMoE), arXiv:2310.01334.
template <class R>
class WithMergedExperts : public FilteredRouter<R, MergedExpertsFilter> {
 public:
  /// @param merged  (router.num_experts()) what number each expert has now
  /// @throws std::invalid_argument unless all numbers from 0 to the largest occur.
  WithMergedExperts(R router, std::vector<Index> merged)
      : WithMergedExperts::FilteredRouter(std::move(router), count(std::move(merged))) {
    const auto& numbers = this->merged();
    require_equal(std::ssize(numbers), this->router().num_experts(), "WithMergedExperts: merged.size()");
    for (const Index e : numbers) require_between(0, e, this->num_experts() - 1, "WithMergedExperts: merged");
    for (Index e = 0; e < this->num_experts(); ++e) {
      require(std::find(numbers.begin(), numbers.end(), e) != numbers.end(),
              "WithMergedExperts: no expert is merged into " + std::to_string(e) + " of " +
                  std::to_string(this->num_experts()));
    }
  }

  /// What number each of the router's experts has now.
  const std::vector<Index>& merged() const { return this->filter().merged; }

 private:
  static MergedExpertsFilter count(std::vector<Index> merged) {
    const auto last = std::max_element(merged.begin(), merged.end());
    const Index num_experts = last == merged.end() ? 0 : *last + 1;
    return {std::move(merged), num_experts};
  }
};

}  // namespace moe::inline MOE_TARGET
