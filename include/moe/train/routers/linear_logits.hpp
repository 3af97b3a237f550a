/// @file  Gradients of the linear layer that most routers begin with.
#pragma once

#include "moe/core/tokens.hpp"
#include "moe/core/types.hpp"
#include "moe/routers/linear_logits.hpp"
#include "moe/runtime/workers.hpp"
#include "moe/train/routers/detail/logits.hpp"

namespace moe::inline MOE_TARGET {

/// Through logits = W·x + bias: routers/logits_router.hpp says what each is.
template <class Scalar, class Gradient>
void backward(const LinearLogits<Scalar>& linear, const Tokens<Scalar>& tokens, const ConstMatrixRef<Scalar>&,
              const ConstMatrixRef<Scalar>& d_logits, MatrixRef<Scalar> d_x, Gradient& gradient, Workers& workers) {
  if (linear.num_experts() == 0) return;
  linear_backward<Scalar>(map_of(linear.weight()), tokens.x, d_logits, d_x, gradient.weight(), gradient.bias(),
                          workers);
}

}  // namespace moe::inline MOE_TARGET
