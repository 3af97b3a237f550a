/// @file  Gradients of a router that replays recorded routes.
#pragma once

#include <span>
#include <type_traits>

#include "moe/core/routing.hpp"
#include "moe/core/tokens.hpp"
#include "moe/core/types.hpp"
#include "moe/routers/filters/replay.hpp"
#include "moe/runtime/workers.hpp"

namespace moe::inline MOE_TARGET {

/// The router's own. Recorded routes are constants; so are recorded weights, which have no gradient.
template <class R, class Gradient, class Scalar = typename R::Scalar>
void backward(const Replay<R>& router, const Tokens<Scalar>& tokens, const Routing<Scalar>& routing,
              std::span<const std::type_identity_t<Scalar>> d_weight, MatrixRef<Scalar> d_logits, MatrixRef<Scalar> d_x,
              Gradient& gradient, Workers& workers) {
  if (tokens.side.recorded != nullptr && router.options().weights == ReplayedWeights::recorded) return;
  backward(router.router(), tokens, routing, d_weight, d_logits, d_x, gradient.router(), workers);
}

}  // namespace moe::inline MOE_TARGET
