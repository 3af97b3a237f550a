/// @file  Gradients of the router that compares directions.
#pragma once

#include <span>
#include <type_traits>

#include "moe/core/routing.hpp"
#include "moe/core/tokens.hpp"
#include "moe/core/types.hpp"
#include "moe/kernels/vectors.hpp"
#include "moe/routers/cosine_top_k.hpp"
#include "moe/routers/detail/logits.hpp"
#include "moe/routers/detail/unit_length.hpp"
#include "moe/runtime/workers.hpp"
#include "moe/train/routers/detail/logits.hpp"
#include "moe/train/routers/detail/unit_length.hpp"
#include "moe/train/routers/top_k.hpp"

namespace moe::inline MOE_TARGET {

/// As backward() of LinearTopK. A log_scale above its bound has no gradient, nor has a direction of zeros.
template <class Scalar>
void backward(const CosineTopK<Scalar>& router, const Tokens<Scalar>& tokens, const Routing<Scalar>& routing,
              std::span<const std::type_identity_t<Scalar>> d_weight, MatrixRef<Scalar> d_logits, MatrixRef<Scalar> d_x,
              CosineTopK<Scalar>& gradient, Workers& workers) {
  const Index projected = router.projection().rows(), experts = router.num_experts();
  const auto logits = logits_of(routing, experts, tokens.count());
  backward(router.choice(), logits, routing, d_weight, d_logits, workers);
  if (router.log_scale() <= router.highest_log_scale()) {
    for (Index t = 0; t < tokens.count(); ++t) gradient.log_scale() += kernels::dot(d_logits.col(t), logits.col(t));
  }

  auto d_cosine = workers.shared().template matrix<Scalar>(experts, tokens.count());
  auto d_token = workers.shared().template matrix<Scalar>(projected, tokens.count());
  auto d_expert = workers.shared().template matrix<Scalar>(projected, experts);
  d_cosine = router.scale() * d_logits;
  d_token.setZero();
  d_expert.setZero();
  const auto of_tokens = router.token_directions(tokens.x, workers), of_experts = router.expert_directions(workers);
  linear_backward<Scalar>(of_experts.rows(), of_tokens.columns, d_cosine, d_token,
                          {d_expert.data(), experts, projected}, {nullptr, 0}, workers);
  directions_backward<Scalar>(of_experts, d_expert, workers);
  directions_backward<Scalar>(of_tokens, d_token, workers);
  gradient.experts() += d_expert.transpose();
  linear_backward<Scalar>(map_of(router.projection()), tokens.x, d_token, d_x, gradient.projection(), {nullptr, 0},
                          workers);
}

}  // namespace moe::inline MOE_TARGET
