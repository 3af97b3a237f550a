/// @file  Gradients of the router of BASE layers.
#pragma once

#include <cmath>
#include <cstddef>
#include <span>
#include <type_traits>

#include "moe/core/routing.hpp"
#include "moe/core/tokens.hpp"
#include "moe/core/types.hpp"
#include "moe/kernels/scores.hpp"
#include "moe/routers/base.hpp"
#include "moe/routers/detail/logits.hpp"
#include "moe/runtime/workers.hpp"
#include "moe/train/routers/detail/logits.hpp"
#include "moe/train/routers/detail/scores.hpp"

namespace moe::inline MOE_TARGET {

/// As backward() of LinearTopK: the assignment is constant. A token's weights are α = σ(its expert's logit) and, with a
/// residual, 1 − α.
template <class Scalar>
void backward(const BaseRouter<Scalar>& router, const Tokens<Scalar>& tokens, const Routing<Scalar>& routing,
              std::span<const std::type_identity_t<Scalar>> d_weight, MatrixRef<Scalar> d_logits, MatrixRef<Scalar> d_x,
              BaseRouter<Scalar>& gradient, Workers& workers) {
  const auto logits = logits_of(routing, router.weight().rows(), tokens.count());
  const bool residual = router.options().residual;
  for (Index t = 0; t < tokens.count(); ++t) {
    const auto r = std::size_t(t * (1 + residual));
    const Index e = routing.expert[r];
    const Scalar alpha = Scalar(1) / (Scalar(1) + std::exp(-logits(e, t)));
    d_logits(e, t) +=
        score_slope(Score::sigmoid, logits(e, t), alpha) * (d_weight[r] - (residual ? d_weight[r + 1] : 0));
  }
  linear_backward<Scalar>(map_of(router.weight()), tokens.x, d_logits, d_x, gradient.weight(), {nullptr, 0}, workers);
}

}  // namespace moe::inline MOE_TARGET
