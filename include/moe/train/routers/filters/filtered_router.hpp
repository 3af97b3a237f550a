/// @file  Gradients of a router whose routes go through a filter.
#pragma once

#include <span>
#include <type_traits>

#include "moe/core/routing.hpp"
#include "moe/core/tokens.hpp"
#include "moe/core/types.hpp"
#include "moe/routers/filters/filtered_router.hpp"
#include "moe/runtime/workers.hpp"

namespace moe::inline MOE_TARGET {

/// The router's own routes, before they were filtered; kept in memory of the workers.
template <class R, class Scalar = typename R::Scalar>
const Routing<Scalar>& route_anew(const R& router, const Tokens<Scalar>& tokens, Workers& workers) {
  auto& routing = workers.shared().template kept<Routing<Scalar>>();
  routing.clear();
  router.route(tokens, routing, workers);
  return routing;
}

/// Hands back what the filter makes of ∂L/∂weight: pass_on(routing, d_weight, d_logits), where all are of the router
/// inside. This is of filters that drop routes: who is dropped is constant, and the others have the router's gradient.
template <class Filter, class R, class PassOn, class Scalar = typename R::Scalar>
  requires Filter::only_drops
void filter_backward(const Filter&, const R&, const Tokens<Scalar>&, const Routing<Scalar>& routing,
                     std::span<const std::type_identity_t<Scalar>> d_weight, MatrixRef<Scalar> d_logits, Workers&,
                     const PassOn& pass_on) {
  pass_on(routing, d_weight, d_logits);
}

/// As backward() of the router, through what its filter has done: filter_backward().
template <class R, class Filter, class Gradient, class Scalar = typename R::Scalar>
void backward(const FilteredRouter<R, Filter>& filtered, const Tokens<Scalar>& tokens, const Routing<Scalar>& routing,
              std::span<const std::type_identity_t<Scalar>> d_weight, MatrixRef<Scalar> d_logits, MatrixRef<Scalar> d_x,
              Gradient& gradient, Workers& workers) {
  filter_backward(
      filtered.filter(), filtered.router(), tokens, routing, d_weight, d_logits, workers,
      [&](const Routing<Scalar>& its, std::span<const Scalar> its_d_weight, MatrixRef<Scalar> its_d_logits) {
        backward(filtered.router(), tokens, its, its_d_weight, its_d_logits, d_x, gradient.router(), workers);
      });
}

}  // namespace moe::inline MOE_TARGET
