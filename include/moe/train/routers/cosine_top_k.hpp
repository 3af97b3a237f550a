/// @file  Gradients of the router that compares directions.
#pragma once

#include "moe/core/tokens.hpp"
#include "moe/core/types.hpp"
#include "moe/kernels/vectors.hpp"
#include "moe/routers/cosine_top_k.hpp"
#include "moe/routers/detail/unit_length.hpp"
#include "moe/runtime/workers.hpp"
#include "moe/train/gradient_shape.hpp"
#include "moe/train/no_gradient.hpp"
#include "moe/train/routers/detail/unit_length.hpp"
#include "moe/train/routers/linear_logits.hpp"
#include "moe/train/routers/logits_router.hpp"

namespace moe::inline MOE_TARGET {

/// As backward() of LinearLogits. A log_scale above its bound has no gradient, nor has a direction of zeros.
template <class Scalar, class Gradient>
void backward(const CosineLogits<Scalar>& cosine, const Tokens<Scalar>& tokens, const ConstMatrixRef<Scalar>& logits,
              const ConstMatrixRef<Scalar>& d_logits, MatrixRef<Scalar> d_x, Gradient& gradient, Workers& workers) {
  const Index projected = cosine.projection().rows(), experts = logits.rows();
  auto d_cosine = workers.shared().template matrix<Scalar>(experts, tokens.count());
  auto d_token = workers.shared().template matrix<Scalar>(projected, tokens.count());
  d_cosine = cosine.scale() * d_logits;
  d_token.setZero();
  const auto of_tokens = cosine.token_directions(tokens.x, workers), of_experts = cosine.expert_directions(workers);
  linear_backward_to_input<Scalar>(of_experts.rows(), d_cosine, d_token, workers);
  directions_backward<Scalar>(of_tokens, d_token, workers);
  linear_backward_to_input<Scalar>(map_of(cosine.projection()), d_token, d_x, workers);
  if constexpr (learns<Gradient>) {
    if (cosine.log_scale() <= cosine.highest_log_scale()) {
      for (Index t = 0; t < tokens.count(); ++t) gradient.log_scale() += kernels::dot(d_logits.col(t), logits.col(t));
    }
    auto d_expert = workers.shared().template matrix<Scalar>(projected, experts);
    d_expert.setZero();
    linear_backward_to_weight<Scalar>(of_tokens.columns, d_cosine, {d_expert.data(), experts, projected}, workers);
    directions_backward<Scalar>(of_experts, d_expert, workers);
    require_gradient(gradient.experts(), experts, projected, "experts");
    gradient.experts() += d_expert.transpose();
    linear_backward_to_weight<Scalar>(tokens.x, d_token, gradient.projection(), workers);
  }
}

}  // namespace moe::inline MOE_TARGET
