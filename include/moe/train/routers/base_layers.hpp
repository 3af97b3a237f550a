/// @file  Gradients of the router of BASE layers.
#pragma once

#include <cmath>
#include <cstddef>
#include <span>
#include <type_traits>

#include "moe/core/routing.hpp"
#include "moe/core/types.hpp"
#include "moe/kernels/scores.hpp"
#include "moe/routers/base_layers.hpp"
#include "moe/runtime/workers.hpp"
#include "moe/train/routers/detail/scores.hpp"
#include "moe/train/routers/logits_router.hpp"

namespace moe::inline MOE_TARGET {

/// As backward() of TopKChoice: the assignment is constant. A token's weights are α = σ(its expert's logit) and, with a
/// residual, 1 − α.
template <class Scalar, class Gradient>
void backward(const BaseLayersChoice<Scalar>& choice, const ConstMatrixRef<Scalar>& logits,
              const Routing<Scalar>& routing, std::span<const std::type_identity_t<Scalar>> d_weight,
              MatrixRef<Scalar> d_logits, Gradient&, Workers&) {
  const bool residual = choice.options().residual;
  for (Index t = 0; t < logits.cols(); ++t) {
    const auto r = std::size_t(t * (1 + residual));
    const Index e = routing.expert[r];
    const Scalar alpha = Scalar(1) / (Scalar(1) + std::exp(-logits(e, t)));
    d_logits(e, t) +=
        score_slope(Score::sigmoid, logits(e, t), alpha) * (d_weight[r] - (residual ? d_weight[r + 1] : 0));
  }
}

}  // namespace moe::inline MOE_TARGET
