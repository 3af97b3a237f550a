/// @file  Gradients of a linear layer that stands around a group of experts.
#pragma once

#include <utility>

#include "moe/core/types.hpp"
#include "moe/experts/projection.hpp"
#include "moe/runtime/workers.hpp"
#include "moe/train/gradient_shape.hpp"
#include "moe/train/kernels/add_product.hpp"
#include "moe/train/no_gradient.hpp"
#include "moe/train/routers/linear_logits.hpp"

namespace moe::inline MOE_TARGET {

/// Through y = W·x + b:  ∂L/∂x += Wᵀ·∂L/∂y, ∂L/∂W += ∂L/∂y·xᵀ, ∂L/∂b += Σ ∂L/∂y.
/// @param x         (in × n_tokens)
/// @param d_y       (out × n_tokens)
/// @param d_x       (in × n_tokens)
/// @param gradient  a Projection of the same shape, or NoGradient
/// @throws std::invalid_argument naming both shapes if that of the gradient is another.
template <class W, class Gradient, class Scalar = ActivationScalar<W>>
void backward(const Projection<W>& projection, const ConstMatrixRef<Scalar>& x, const ConstMatrixRef<Scalar>& d_y,
              MatrixRef<Scalar> d_x, Gradient& gradient, Workers& workers) {
  linear_backward_to_input<Scalar>(projection.weight(), d_y, d_x, workers);
  if constexpr (learns<Gradient>) {
    linear_backward_to_weight<Scalar>(x, d_y, gradient.owned_weight(), workers);
    if (projection.bias().size() == 0) return;
    require_gradient(gradient.bias(), projection.bias(), "a bias");
    kernels::add_columns(d_y, gradient.bias());
  }
}

}  // namespace moe::inline MOE_TARGET
