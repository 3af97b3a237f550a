/// @file  Gradients of the linear router that hears the one of the layer before it.
#pragma once

#include "moe/core/check.hpp"
#include "moe/core/tokens.hpp"
#include "moe/core/types.hpp"
#include "moe/routers/carried_top_k.hpp"
#include "moe/runtime/workers.hpp"
#include "moe/train/no_gradient.hpp"
#include "moe/train/routers/linear_logits.hpp"
#include "moe/train/routers/logits_router.hpp"

namespace moe::inline MOE_TARGET {

/// As backward() of LinearLogits, for the same logits of the layer before. Those learn too: carried_backward().
template <class Scalar, class Gradient>
void backward(const CarriedLogits<Scalar>& carried, const Tokens<Scalar>& tokens, const ConstMatrixRef<Scalar>&,
              const ConstMatrixRef<Scalar>& d_logits, MatrixRef<Scalar> d_x, Gradient& gradient, Workers& workers) {
  linear_backward<Scalar>(map_of(carried.weight()), tokens.x, d_logits, d_x, gradient.weight(), {nullptr, 0}, workers);
  if constexpr (learns<Gradient>) {
    if (tokens.side.previous_logits.empty()) return;
    const Eigen::Map<const Matrix<Scalar>> previous(tokens.side.previous_logits.data(), carried.carry().cols(),
                                                    tokens.count());
    linear_backward_to_weight<Scalar>(previous, d_logits, gradient.carry(), workers);
  }
}

/// From a layer's logits to those that it carried: after backward() of the layer, and before that of the one before it.
/// @param carried     the logits() of the layer's router
/// @param d_logits    (num_experts × n_tokens) logit_gradient() of the layer's tape
/// @param d_previous  (experts of the layer before × n_tokens) logit_gradient() of that layer's tape; added to
/// @throws std::invalid_argument if a shape differs.
template <class Scalar>
void carried_backward(const CarriedLogits<Scalar>& carried, const ConstMatrixRef<Scalar>& d_logits,
                      MatrixRef<Scalar> d_previous, Workers& workers) {
  require_equal(d_logits.rows(), carried.num_experts(), "carried_backward: d_logits.rows()");
  require_equal(d_previous.rows(), carried.carry().cols(), "carried_backward: d_previous.rows()");
  require_equal(d_previous.cols(), d_logits.cols(), "carried_backward: d_previous.cols()");
  linear_backward_to_input<Scalar>(map_of(carried.carry()), d_logits, d_previous, workers);
}

}  // namespace moe::inline MOE_TARGET
