/// @file  Gradients of a router that replays recorded routes.
#pragma once

#include <span>
#include <type_traits>

#include "moe/core/routing.hpp"
#include "moe/core/tokens.hpp"
#include "moe/core/types.hpp"
#include "moe/routers/filters/replay.hpp"
#include "moe/runtime/workers.hpp"
#include "moe/train/routers/filters/filtered_router.hpp"

namespace moe::inline MOE_TARGET {

/// The router's own. Recorded routes are constants; so are recorded weights, which have no gradient.
template <class R, class PassOn, class Scalar = typename R::Scalar>
void filter_backward(const ReplayFilter& filter, const R&, const Tokens<Scalar>& tokens, const Routing<Scalar>& routing,
                     std::span<const std::type_identity_t<Scalar>> d_weight, MatrixRef<Scalar> d_logits, Workers&,
                     const PassOn& pass_on) {
  if (tokens.side.recorded != nullptr && filter.options.weights == ReplayedWeights::recorded) return;
  pass_on(routing, d_weight, d_logits);
}

}  // namespace moe::inline MOE_TARGET
