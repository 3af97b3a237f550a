/// @file  Gradients of a router to experts of which some have become one.
#pragma once

#include <cstddef>
#include <span>
#include <type_traits>

#include "moe/core/routing.hpp"
#include "moe/core/tokens.hpp"
#include "moe/core/types.hpp"
#include "moe/routers/filters/merged_experts.hpp"
#include "moe/runtime/workers.hpp"
#include "moe/train/routers/filters/filtered_router.hpp"

namespace moe::inline MOE_TARGET {

/// The router's own, of routes that each have the gradient of the one that they have become. Losses on logits find none
/// here: there are none.
template <class R, class PassOn, class Scalar = typename R::Scalar>
void filter_backward(const MergedExpertsFilter& filter, const R& router, const Tokens<Scalar>& tokens,
                     const Routing<Scalar>& routing, std::span<const std::type_identity_t<Scalar>> d_weight,
                     MatrixRef<Scalar>, Workers& workers, const PassOn& pass_on) {
  const Routing<Scalar>& before = route_anew(router, tokens, workers);
  auto* const d_before = workers.shared().template array<Scalar>(before.size());
  filter.for_each_route(before, routing,
                        [&](std::size_t from, std::size_t to, Index, bool) { d_before[from] = d_weight[to]; });
  const Index num_tokens = tokens.count(), logits = Index(before.logits.size());
  auto d_logits = workers.shared().template matrix<Scalar>(num_tokens == 0 ? 0 : logits / num_tokens, num_tokens);
  d_logits.setZero();
  pass_on(before, {d_before, std::size_t(before.size())}, d_logits);
}

}  // namespace moe::inline MOE_TARGET
