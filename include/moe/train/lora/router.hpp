/// @file  Gradients of the adapter of a router.
#pragma once

#include "moe/core/check.hpp"
#include "moe/core/tokens.hpp"
#include "moe/core/types.hpp"
#include "moe/lora/router.hpp"
#include "moe/runtime/workers.hpp"
#include "moe/train/lora/adapter.hpp"
#include "moe/train/no_gradient.hpp"
#include "moe/train/routers/linear_logits.hpp"
#include "moe/train/routers/logits_router.hpp"

namespace moe::inline MOE_TARGET {

/// As backward() of LinearLogits. The linear layer beside the adapter has no gradient.
/// @param tokens    with the same seed as in forward, if there is one
/// @param gradient  of the same shape; only its adapter is added to; or NoGradient
/// @throws std::invalid_argument naming both shapes if those of the adapter and of its gradient differ.
template <class Scalar, class Gradient>
void backward(const LoraLogits<Scalar>& lora, const Tokens<Scalar>& tokens, const ConstMatrixRef<Scalar>&,
              const ConstMatrixRef<Scalar>& d_logits, MatrixRef<Scalar> d_x, Gradient& gradient, Workers& workers) {
  linear_backward_to_input<Scalar>(map_of(lora.base().weight()), d_logits, d_x, workers);
  Adapter<Scalar>* of_adapter = nullptr;
  if constexpr (learns<Gradient>) of_adapter = &gradient.adapter();
  backward(lora.adapter(), lora.dropout_for(workers), tokens.x, d_logits, d_x, of_adapter, workers);
}

}  // namespace moe::inline MOE_TARGET
