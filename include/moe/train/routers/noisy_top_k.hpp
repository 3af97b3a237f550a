/// @file  Gradients of the linear router whose logits are noisy.
#pragma once

#include "moe/core/tokens.hpp"
#include "moe/core/types.hpp"
#include "moe/kernels/matmul.hpp"
#include "moe/kernels/scores.hpp"
#include "moe/routers/noisy_top_k.hpp"
#include "moe/runtime/workers.hpp"
#include "moe/train/no_gradient.hpp"
#include "moe/train/routers/linear_logits.hpp"
#include "moe/train/routers/logits_router.hpp"

namespace moe::inline MOE_TARGET {

/// Through σ = softplus(W_noise·x) + min_stddev of noisy.stddev(): what a loss on the smooth load needs besides
/// backward().  ∂L/∂(W_noise·x) = ∂L/∂σ ⊙ 1 / (1 + exp(−W_noise·x)). Nothing where σ is a constant.
/// @param d_stddev  (num_experts × n_tokens) ∂L/∂σ; overwritten
/// @param d_x       (d_model × n_tokens) added to
/// @param gradient  a NoisyLogits, added to; or NoGradient
template <class Scalar, class Gradient>
void stddev_backward(const NoisyLogits<Scalar>& noisy, const ConstMatrixRef<Scalar>& x, MatrixRef<Scalar> d_stddev,
                     MatrixRef<Scalar> d_x, Gradient& gradient, Workers& workers) {
  if (noisy.noise_weight().size() == 0) return;
  const auto weight = map_of(noisy.noise_weight());
  auto raw = workers.shared().template matrix<Scalar>(noisy.num_experts(), x.cols());
  kernels::matmul<Scalar, Scalar>(weight, x, raw, workers);
  for (Index t = 0; t < x.cols(); ++t) {
    auto column = raw.col(t);
    score_each(column, column,
               [](const kernels::Lanes<Scalar>& l) { return kernels::exponential(kernels::Lanes<Scalar>(-l)); });
    for (Index e = 0; e < raw.rows(); ++e) d_stddev(e, t) /= 1 + column(e);
  }
  linear_backward_to_input<Scalar>(weight, d_stddev, d_x, workers);
  if constexpr (learns<Gradient>) linear_backward_to_weight<Scalar>(x, d_stddev, gradient.noise_weight(), workers);
}

/// As backward() of LinearLogits, for the same noise. d_logits is that of the noisy logits.
template <class Scalar, class Gradient>
void backward(const NoisyLogits<Scalar>& noisy, const Tokens<Scalar>& tokens, const ConstMatrixRef<Scalar>&,
              const ConstMatrixRef<Scalar>& d_logits, MatrixRef<Scalar> d_x, Gradient& gradient, Workers& workers) {
  linear_backward<Scalar>(map_of(noisy.weight()), tokens.x, d_logits, d_x, gradient.weight(), {nullptr, 0}, workers);
  noisy.with_noise(tokens, [&](const auto& noise) {
    auto d_stddev = workers.shared().template matrix<Scalar>(d_logits.rows(), d_logits.cols());
    for (Index t = 0; t < d_logits.cols(); ++t) {
      for (Index e = 0; e < d_logits.rows(); ++e) d_stddev(e, t) = d_logits(e, t) * noise(e, t);
    }
    stddev_backward<Scalar>(noisy, tokens.x, d_stddev, d_x, gradient, workers);
  });
}

}  // namespace moe::inline MOE_TARGET
