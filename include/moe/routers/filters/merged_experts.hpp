/// @file  A router to experts of which some have become one.
#pragma once

#include <algorithm>
#include <cstddef>
#include <iterator>
#include <utility>
#include <vector>

#include "moe/core/check.hpp"
#include "moe/core/concepts.hpp"
#include "moe/core/contracts.hpp"
#include "moe/core/routing.hpp"
#include "moe/core/tokens.hpp"
#include "moe/core/types.hpp"
#include "moe/runtime/workers.hpp"

namespace moe::inline MOE_TARGET {

/// Routes as before the experts were merged, then names the experts that they have become. Where a token's routes, side
/// by side, lead to the same one, they become one route that counts for their sum: w₁·f(x) + w₂·f(x) = (w₁ + w₂)·f(x).
/// (Not so where a weight is on the input.) No logits are left: they were those of other experts.
///
/// Li et al. 2024, "Merge, Then Compress" (MC-SMoE), arXiv:2310.01334.
template <class R>
class WithMergedExperts {
  static_assert(is_router<R>());

 public:
  using Scalar = typename R::Scalar;

  /// @param merged  (router.num_experts()) what number each expert has now
  /// @throws std::invalid_argument unless all numbers from 0 to the largest occur.
  WithMergedExperts(R router, std::vector<Index> merged) : router_(std::move(router)), merged_(std::move(merged)) {
    require_equal(std::ssize(merged_), router_.num_experts(), "WithMergedExperts: merged.size()");
    num_experts_ = *std::max_element(merged_.begin(), merged_.end()) + 1;
    for (const Index e : merged_) require_between(0, e, num_experts_ - 1, "WithMergedExperts: merged");
    for (Index e = 0; e < num_experts_; ++e) {
      require(
          std::find(merged_.begin(), merged_.end(), e) != merged_.end(),
          "WithMergedExperts: no expert is merged into " + std::to_string(e) + " of " + std::to_string(num_experts_));
    }
  }

  Index d_model() const { return router_.d_model(); }
  Index num_experts() const { return num_experts_; }
  const R& router() const { return router_; }
  const std::vector<Index>& merged() const { return merged_; }

  void route(const Tokens<Scalar>& tokens, Routing<Scalar>& routing, Workers& workers) const {
    router_.route(tokens, routing, workers);
    routing.logits.clear();
    for (Index& expert : routing.expert) expert = merged_[std::size_t(expert)];
    if (routing.weight_on == WeightOn::output) unite(routing);
  }

  template <class Visit>
  void visit_parameters(Visit& visit) {
    visit.in("", router_);
  }

 private:
  static void unite(Routing<Scalar>& routing) {
    std::size_t kept = 0;
    for (std::size_t r = 0; r < routing.token.size(); ++r) {
      std::size_t same = kept;  // one of the routes before it, of this token to this expert
      for (std::size_t before = kept; before-- > 0 && routing.token[before] == routing.token[r];) {
        if (routing.expert[before] == routing.expert[r] && !routing.is_dropped(Index(before))) same = before;
      }
      if (same < kept && !routing.is_dropped(Index(r))) {
        routing.weight[same] += routing.weight[r];
        continue;
      }
      routing.token[kept] = routing.token[r];
      routing.expert[kept] = routing.expert[r];
      routing.weight[kept] = routing.weight[r];
      if (!routing.dropped.empty()) routing.dropped[kept] = routing.dropped[r];
      ++kept;
    }
    routing.resize(Index(kept));
    if (!routing.dropped.empty()) routing.dropped.resize(kept);
  }

  R router_;
  std::vector<Index> merged_;
  Index num_experts_ = 0;
};

}  // namespace moe::inline MOE_TARGET
