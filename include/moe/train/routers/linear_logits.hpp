/// @file  Gradients of the linear layer that most routers begin with.
#pragma once

#include "moe/core/scratch.hpp"
#include "moe/core/tokens.hpp"
#include "moe/core/types.hpp"
#include "moe/kernels/lanes.hpp"
#include "moe/routers/linear_logits.hpp"
#include "moe/runtime/workers.hpp"
#include "moe/train/gradient_shape.hpp"
#include "moe/train/kernels/add_product.hpp"

namespace moe::inline MOE_TARGET {

/// Through logits = W·x:  ∂L/∂x += Wᵀ·∂L/∂logits.
/// @param weight  a WeightMap, or a QuantizedMatrix
template <class Scalar, class M>
void linear_backward_to_input(const M& weight, const ConstMatrixRef<Scalar>& d_logits, MatrixRef<Scalar> d_x,
                              Workers& workers) {
  workers.for_each_band(weight.cols(), 2 * kernels::lanes<Scalar>, [&](Index first, Index last, Scratch& scratch) {
    kernels::add_transposed<typename WeightType<M>::type, Scalar>(kernels::columns_of_weight(weight, first, last),
                                                                  d_logits, d_x.middleRows(first, last - first),
                                                                  kernels::make_product_room<Scalar>(scratch));
  });
}

/// Through logits = W·x:  ∂L/∂W += ∂L/∂logits·xᵀ.
template <class Scalar>
void linear_backward_to_weight(const ConstMatrixRef<Scalar>& x, const ConstMatrixRef<Scalar>& d_logits,
                               Eigen::Map<Weight<Scalar>> d_weight, Workers& workers) {
  if (x.cols() == 0) return;  // of no tokens, nobody need know the number of logits
  require_gradient(d_weight, d_logits.rows(), x.rows(), "a weight");
  workers.for_each_band(x.rows(), 2 * kernels::lanes<Scalar>, [&](Index first, Index last, Scratch& scratch) {
    kernels::add_outer<Scalar>(d_logits, x.middleRows(first, last - first), d_weight.middleCols(first, last - first),
                               kernels::make_product_room<Scalar>(scratch));
  });
}

/// Through logits = W·x + bias: both, and ∂L/∂bias += Σ ∂L/∂logits.
/// @param weight    (num_experts × d_model)
/// @param d_weight  (num_experts × d_model), or empty for one that does not learn
/// @param d_bias    (num_experts), or empty
template <class Scalar>
void linear_backward(const WeightMap<Scalar>& weight, const ConstMatrixRef<Scalar>& x,
                     const ConstMatrixRef<Scalar>& d_logits, MatrixRef<Scalar> d_x, Eigen::Map<Weight<Scalar>> d_weight,
                     Eigen::Map<Eigen::Matrix<Scalar, Eigen::Dynamic, 1>> d_bias, Workers& workers) {
  linear_backward_to_input<Scalar>(weight, d_logits, d_x, workers);
  if (d_weight.size() > 0) linear_backward_to_weight<Scalar>(x, d_logits, d_weight, workers);
  if (d_bias.size() == 0 || x.cols() == 0) return;
  require_gradient(d_bias, d_logits.rows(), 1, "a bias");
  kernels::add_columns(d_logits, d_bias);
}

/// train/routers/logits_router.hpp says what each is.
template <class Scalar, class Gradient>
void backward(const LinearLogits<Scalar>& linear, const Tokens<Scalar>& tokens, const ConstMatrixRef<Scalar>&,
              const ConstMatrixRef<Scalar>& d_logits, MatrixRef<Scalar> d_x, Gradient& gradient, Workers& workers) {
  if (linear.num_experts() == 0) return;
  linear_backward<Scalar>(map_of(linear.weight()), tokens.x, d_logits, d_x, gradient.weight(), gradient.bias(),
                          workers);
}

}  // namespace moe::inline MOE_TARGET
