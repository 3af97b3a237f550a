/// @file  Gradients of the experts that cost next to nothing.
#pragma once

#include "moe/core/parameters.hpp"
#include "moe/core/scratch.hpp"
#include "moe/core/types.hpp"
#include "moe/experts/zero_compute.hpp"
#include "moe/kernels/vectors.hpp"
#include "moe/train/gradient_shape.hpp"

namespace moe::inline MOE_TARGET {

template <class Scalar>
void visit_parameters(ZeroExpert<Scalar>&, ParameterVisitor<Scalar>&) {}  ///< Has none.
template <class Scalar>
void visit_parameters(CopyExpert<Scalar>&, ParameterVisitor<Scalar>&) {}  ///< Has none.
/// v and W.
template <class Scalar>
void visit_parameters(ConstantExpert<Scalar>& expert, ParameterVisitor<Scalar>& visit) {
  visit("v", expert.v);
  visit("w_mix", expert.w_mix);
}

/// Of y = 0: nothing.
template <class Scalar>
void backward(const ZeroExpert<Scalar>&, const ConstMatrixRef<Scalar>&, const ConstMatrixRef<Scalar>&,
              MatrixRef<Scalar>, ZeroExpert<Scalar>&, Scratch&) {}

/// Of y = x: d_x += d_y.
template <class Scalar>
void backward(const CopyExpert<Scalar>&, const ConstMatrixRef<Scalar>&, const ConstMatrixRef<Scalar>& d_y,
              MatrixRef<Scalar> d_x, CopyExpert<Scalar>&, Scratch&) {
  d_x += d_y;
}

/// Of y = a·x + b·v, (a, b) = softmax(W·x):  with d = a·b·(x·∂L/∂y − v·∂L/∂y), the slope of a's logit, and −d of b's,
///   ∂L/∂x = a·∂L/∂y + d·(W₀ − W₁)ᵀ,  ∂L/∂v = b·∂L/∂y,  ∂L/∂W = (d, −d)ᵀ·xᵀ.
template <class Scalar>
void backward(const ConstantExpert<Scalar>& expert, const ConstMatrixRef<Scalar>& x, const ConstMatrixRef<Scalar>& d_y,
              MatrixRef<Scalar> d_x, ConstantExpert<Scalar>& gradient, Scratch&) {
  require_gradient(gradient.v, expert.v, "v");
  require_gradient(gradient.w_mix, expert.w_mix, "w_mix");
  for (Index t = 0; t < x.cols(); ++t) {
    Eigen::Matrix<Scalar, 2, 1> mix(kernels::dot(expert.w_mix.row(0), x.col(t)),
                                    kernels::dot(expert.w_mix.row(1), x.col(t)));
    softmax(mix, mix);
    const Scalar d = mix(0) * mix(1) * (kernels::dot(x.col(t), d_y.col(t)) - kernels::dot(expert.v, d_y.col(t)));
    kernels::add_scaled(mix(0), d_y.col(t), d_x.col(t));
    kernels::add_scaled(d, expert.w_mix.row(0), d_x.col(t));
    kernels::add_scaled(-d, expert.w_mix.row(1), d_x.col(t));
    kernels::add_scaled(mix(1), d_y.col(t), gradient.v);
    kernels::add_scaled(d, x.col(t), gradient.w_mix.row(0));
    kernels::add_scaled(-d, x.col(t), gradient.w_mix.row(1));
  }
}

}  // namespace moe::inline MOE_TARGET
