/// @file  Gradients of the linear router that normalises what it reads.
#pragma once

#include <cstddef>
#include <span>
#include <type_traits>

#include "moe/core/routing.hpp"
#include "moe/core/scratch.hpp"
#include "moe/core/tokens.hpp"
#include "moe/core/types.hpp"
#include "moe/kernels/multiply_add.hpp"
#include "moe/routers/normed_top_k.hpp"
#include "moe/routers/top_k.hpp"
#include "moe/runtime/workers.hpp"
#include "moe/train/gradient_shape.hpp"
#include "moe/train/kernels/rms_norm.hpp"
#include "moe/train/no_gradient.hpp"
#include "moe/train/routers/linear_logits.hpp"
#include "moe/train/routers/logits_router.hpp"
#include "moe/train/routers/top_k.hpp"

namespace moe::inline MOE_TARGET {

/// As backward() of LinearLogits, and through RmsNorm: train/kernels/rms_norm.hpp.
template <class Scalar, class Gradient>
void backward(const NormedLogits<Scalar>& normed, const Tokens<Scalar>& tokens, const ConstMatrixRef<Scalar>&,
              const ConstMatrixRef<Scalar>& d_logits, MatrixRef<Scalar> d_x, Gradient& gradient, Workers& workers) {
  auto d_normed = workers.shared().template matrix<Scalar>(normed.d_model(), tokens.count());
  d_normed.setZero();
  linear_backward<Scalar>(map_of(normed.weight()), normed.normalize(tokens.x, workers), d_logits, d_normed,
                          gradient.weight(), {nullptr, 0}, workers);
  backward(normed.norm(), tokens.x, d_normed, d_x, gradient.norm().gain(), workers);
}

/// As backward() of TopKChoice: where that would weigh a route w, its weight is α·w, and ∂L/∂α = Σ w ∂L/∂weight.
template <class Scalar, class Gradient>
void backward(const ScaledTopKChoice<Scalar>& scaled, const ConstMatrixRef<Scalar>& logits,
              const Routing<Scalar>& routing, std::span<const std::type_identity_t<Scalar>> d_weight,
              MatrixRef<Scalar> d_logits, Gradient& gradient, Workers& workers) {
  const Index top_k = scaled.top_k();
  const std::span<Scalar> d_choice(workers.shared().template array<Scalar>(routing.size()), d_weight.size());
  for (std::size_t r = 0; r < d_choice.size(); ++r) {
    d_choice[r] = d_weight[r] * scaled.expert_scale()(routing.expert[r]);
  }
  if constexpr (learns<Gradient>) {
    require_gradient(gradient.expert_scale(), scaled.expert_scale(), "expert_scale");
    Scalar* const weight = workers.shared().template array<Scalar>(routing.size());
    workers.for_each_band(logits.cols(), 16, [&](Index first, Index last, Scratch& scratch) {
      typename TopKChoice<Scalar>::Choice choice(scaled.unscaled(), scratch);
      for (Index t = first; t < last; ++t) {
        choice.read(logits.col(t));
        choice.weigh(&routing.expert[std::size_t(t * top_k)], weight + t * top_k);
      }
    });
    for (std::size_t r = 0; r < d_choice.size(); ++r) {
      Scalar& d_scale = gradient.expert_scale()(routing.expert[r]);
      d_scale = kernels::multiply_add(d_weight[r], weight[r], d_scale);
    }
  }
  backward(scaled.unscaled(), logits, routing, d_choice, d_logits, gradient, workers);
}

}  // namespace moe::inline MOE_TARGET
