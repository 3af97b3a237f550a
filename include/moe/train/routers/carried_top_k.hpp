/// @file  Gradients of the linear router that hears the one of the layer before it.
#pragma once

#include <span>
#include <type_traits>

#include "moe/core/check.hpp"
#include "moe/core/routing.hpp"
#include "moe/core/tokens.hpp"
#include "moe/core/types.hpp"
#include "moe/routers/carried_top_k.hpp"
#include "moe/routers/detail/logits.hpp"
#include "moe/runtime/workers.hpp"
#include "moe/train/routers/detail/logits.hpp"
#include "moe/train/routers/top_k.hpp"

namespace moe::inline MOE_TARGET {

/// As backward() of LinearTopK, for the same logits of the layer before. Those learn too: carried_backward().
template <class Scalar>
void backward(const CarriedTopK<Scalar>& router, const Tokens<Scalar>& tokens, const Routing<Scalar>& routing,
              std::span<const std::type_identity_t<Scalar>> d_weight, MatrixRef<Scalar> d_logits, MatrixRef<Scalar> d_x,
              CarriedTopK<Scalar>& gradient, Workers& workers) {
  backward(router.choice(), logits_of(routing, router.num_experts(), tokens.count()), routing, d_weight, d_logits,
           workers);
  linear_backward<Scalar>(map_of(router.weight()), tokens.x, d_logits, d_x, gradient.weight(), {nullptr, 0}, workers);
  if (tokens.side.previous_logits.empty()) return;
  const Eigen::Map<const Matrix<Scalar>> previous(tokens.side.previous_logits.data(), router.carry().cols(),
                                                  tokens.count());
  linear_backward_to_weight<Scalar>(previous, d_logits, gradient.carry(), workers);
}

/// From a layer's logits to those that it carried: after backward() of the layer, and before that of the one before it.
/// @param d_logits    (num_experts × n_tokens) logit_gradient() of the layer's tape
/// @param d_previous  (experts of the layer before × n_tokens) logit_gradient() of that layer's tape; added to
/// @throws std::invalid_argument if a shape differs.
template <class Scalar>
void carried_backward(const CarriedTopK<Scalar>& router, const ConstMatrixRef<Scalar>& d_logits,
                      MatrixRef<Scalar> d_previous, Workers& workers) {
  require_equal(d_logits.rows(), router.num_experts(), "carried_backward: d_logits.rows()");
  require_equal(d_previous.rows(), router.carry().cols(), "carried_backward: d_previous.rows()");
  require_equal(d_previous.cols(), d_logits.cols(), "carried_backward: d_previous.cols()");
  linear_backward_to_input<Scalar>(map_of(router.carry()), d_logits, d_previous, workers);
}

}  // namespace moe::inline MOE_TARGET
