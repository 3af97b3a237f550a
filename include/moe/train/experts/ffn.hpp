/// @file  Gradients of the plain expert.
#pragma once

#include <algorithm>

#include "moe/core/parameters.hpp"
#include "moe/core/scratch.hpp"
#include "moe/core/types.hpp"
#include "moe/experts/ffn.hpp"
#include "moe/kernels/matmul.hpp"
#include "moe/train/experts/activation.hpp"
#include "moe/train/gradient_shape.hpp"
#include "moe/train/kernels/add_product.hpp"
#include "moe/train/no_gradient.hpp"

namespace moe::inline MOE_TARGET {

/// "wi" and "wo", as a dense FFN of T5 and Switch calls them.
template <class Scalar, class Act>
void visit_parameters(Ffn<Scalar, Act>& expert, ParameterVisitor<Scalar>& visit) {
  visit("wi.weight", expert.w_in);
  visit("wi.bias", expert.b_in);
  visit("wo.weight", expert.w_out);
  visit("wo.bias", expert.b_out);
}

/// Of y = W_out·h + b_out, h = act(a), a = W_in·x + b_in:  ∂L/∂a = W_outᵀ·∂L/∂y ⊙ act'(a), ∂L/∂x = W_inᵀ·∂L/∂a.
/// @param d_x       (d_model × n) ∂L/∂x; added to
/// @param gradient  an Ffn, added to; or NoGradient
template <class Scalar, class Act, class Gradient>
void backward(const Ffn<Scalar, Act>& expert, const ConstMatrixRef<Scalar>& x, const ConstMatrixRef<Scalar>& d_y,
              MatrixRef<Scalar> d_x, Gradient& gradient, Scratch& scratch) {
  auto hidden = scratch.matrix<Scalar>(expert.d_ff(), x.cols()),
       d_hidden = scratch.matrix<Scalar>(expert.d_ff(), x.cols());
  Scalar* const room = kernels::make_product_room<Scalar>(scratch);

  kernels::matmul<Scalar, Scalar>(map_of(expert.w_in), x, hidden, scratch);
  if (expert.b_in.size() > 0) hidden.colwise() += expert.b_in;
  d_hidden.setZero();
  kernels::add_transposed<Scalar, Scalar>(map_of(expert.w_out), d_y, d_hidden, room);
  using Array = Eigen::Array<Scalar, Eigen::Dynamic, 1, Eigen::ColMajor, 64, 1>;  // on the stack
  for (Index i = 0; i < hidden.size(); i += 64) {
    const Index n = std::min<Index>(64, hidden.size() - i);
    auto a = hidden.reshaped().segment(i, n).array();
    d_hidden.reshaped().segment(i, n).array() *= slope(expert.act, Array(a));
    a = expert.act(Array(a)).eval();
  }
  if constexpr (learns<Gradient>) {
    require_gradient(gradient.w_out, expert.w_out, "w_out");
    require_gradient(gradient.w_in, expert.w_in, "w_in");
    require_gradient(gradient.b_out, expert.b_out, "b_out");
    require_gradient(gradient.b_in, expert.b_in, "b_in");
    kernels::add_outer<Scalar>(d_y, hidden, gradient.w_out, room);
    kernels::add_outer<Scalar>(d_hidden, x, gradient.w_in, room);
    if (gradient.b_out.size() > 0) gradient.b_out += d_y.rowwise().sum();
    if (gradient.b_in.size() > 0) gradient.b_in += d_hidden.rowwise().sum();
  }
  kernels::add_transposed<Scalar, Scalar>(map_of(expert.w_in), d_hidden, d_x, room);
}

}  // namespace moe::inline MOE_TARGET
