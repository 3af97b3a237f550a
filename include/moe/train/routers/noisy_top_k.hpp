/// @file  Gradients of the linear router whose logits are noisy.
#pragma once

#include <cmath>
#include <span>
#include <type_traits>

#include "moe/core/routing.hpp"
#include "moe/core/tokens.hpp"
#include "moe/core/types.hpp"
#include "moe/kernels/matmul.hpp"
#include "moe/kernels/scores.hpp"
#include "moe/routers/detail/logits.hpp"
#include "moe/routers/noisy_top_k.hpp"
#include "moe/runtime/workers.hpp"
#include "moe/train/routers/detail/logits.hpp"
#include "moe/train/routers/top_k.hpp"

namespace moe::inline MOE_TARGET {

/// Through σ = softplus(W_noise·x) + min_stddev of router.stddev(): what a loss on the smooth load needs besides
/// backward().  ∂L/∂(W_noise·x) = ∂L/∂σ ⊙ 1 / (1 + exp(−W_noise·x)). Nothing where σ is a constant.
/// @param d_stddev  (num_experts × n_tokens) ∂L/∂σ; overwritten
/// @param d_x       (d_model × n_tokens) added to
/// @param gradient  added to
template <class Scalar>
void stddev_backward(const NoisyTopK<Scalar>& router, const ConstMatrixRef<Scalar>& x, MatrixRef<Scalar> d_stddev,
                     MatrixRef<Scalar> d_x, NoisyTopK<Scalar>& gradient, Workers& workers) {
  if (router.noise_weight().size() == 0) return;
  const auto weight = map_of(router.noise_weight());
  auto raw = workers.shared().template matrix<Scalar>(router.num_experts(), x.cols());
  kernels::matmul<Scalar, Scalar>(weight, x, raw, workers);
  for (Index t = 0; t < x.cols(); ++t) {
    auto column = raw.col(t);
    exponentiate(Scalar(-1), column, Scalar(0), column);
    for (Index e = 0; e < raw.rows(); ++e) d_stddev(e, t) /= 1 + column(e);
  }
  linear_backward<Scalar>(weight, x, d_stddev, d_x, gradient.noise_weight(), {nullptr, 0}, workers);
}

/// As backward() of LinearTopK, for the same noise. d_logits is that of the noisy logits, those of the routing.
template <class Scalar>
void backward(const NoisyTopK<Scalar>& router, const Tokens<Scalar>& tokens, const Routing<Scalar>& routing,
              std::span<const std::type_identity_t<Scalar>> d_weight, MatrixRef<Scalar> d_logits, MatrixRef<Scalar> d_x,
              NoisyTopK<Scalar>& gradient, Workers& workers) {
  backward(router.choice(), logits_of(routing, router.num_experts(), tokens.count()), routing, d_weight, d_logits,
           workers);
  linear_backward<Scalar>(map_of(router.weight()), tokens.x, d_logits, d_x, gradient.weight(), {nullptr, 0}, workers);
  router.with_noise(tokens, [&](const auto& noise) {
    auto d_stddev = workers.shared().template matrix<Scalar>(d_logits.rows(), d_logits.cols());
    for (Index t = 0; t < d_logits.cols(); ++t) {
      for (Index e = 0; e < d_logits.rows(); ++e) d_stddev(e, t) = d_logits(e, t) * noise(e, t);
    }
    stddev_backward<Scalar>(router, tokens.x, d_stddev, d_x, gradient, workers);
  });
}

}  // namespace moe::inline MOE_TARGET
