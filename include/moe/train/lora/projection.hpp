/// @file  Gradients of the adapter of a projection.
#pragma once

#include "moe/core/types.hpp"
#include "moe/lora/projection.hpp"
#include "moe/runtime/workers.hpp"
#include "moe/train/lora/adapter.hpp"
#include "moe/train/no_gradient.hpp"
#include "moe/train/routers/linear_logits.hpp"

namespace moe::inline MOE_TARGET {

/// As backward() of a Projection. The projection beside the adapter has no gradient.
/// @param workers   with the same seed as in forward, if there is one
/// @param gradient  of the same shape; only its adapter is added to; or NoGradient
/// @throws std::invalid_argument naming both shapes if those of the adapter and of its gradient differ.
template <class W, class Gradient, class Scalar = ActivationScalar<W>>
void backward(const LoraProjection<W>& projection, const ConstMatrixRef<Scalar>& x, const ConstMatrixRef<Scalar>& d_y,
              MatrixRef<Scalar> d_x, Gradient& gradient, Workers& workers) {
  linear_backward_to_input<Scalar>(projection.base().weight(), d_y, d_x, workers);
  Adapter<Scalar>* of_adapter = nullptr;
  if constexpr (learns<Gradient>) of_adapter = &gradient.adapter();
  backward(projection.adapter(), projection.dropout_for(workers), x, d_y, d_x, of_adapter, workers);
}

}  // namespace moe::inline MOE_TARGET
