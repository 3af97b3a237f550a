/// @file  Gradients of the linear layer that most routers begin with.
#pragma once

#include "moe/kernels/lanes.hpp"
#include "moe/scratch.hpp"
#include "moe/train/kernels/add_product.hpp"
#include "moe/types.hpp"
#include "moe/workers.hpp"

namespace moe {

/// Through logits = W·x + bias:  ∂L/∂x += Wᵀ·∂L/∂logits,  ∂L/∂W += ∂L/∂logits·xᵀ,  ∂L/∂bias += Σ ∂L/∂logits.
/// @param weight    (num_experts × d_model)
/// @param d_weight  (num_experts × d_model), or empty for one that does not learn
/// @param d_bias    (num_experts), or empty
template <class Scalar>
void linear_backward(const Weight<Scalar>& weight, const ConstMatrixRef<Scalar>& x,
                     const ConstMatrixRef<Scalar>& d_logits, MatrixRef<Scalar> d_x, Eigen::Map<Weight<Scalar>> d_weight,
                     Eigen::Map<Eigen::Matrix<Scalar, Eigen::Dynamic, 1>> d_bias, Workers& workers) {
  workers.for_each_band(weight.cols(), 2 * kernels::lanes<Scalar>, [&](Index first, Index last, Scratch& scratch) {
    Scalar* const room = kernels::make_product_room<Scalar>(scratch);
    kernels::add_transposed<Scalar, Scalar>(kernels::columns_of_weight(map_of(weight), first, last), d_logits,
                                            d_x.middleRows(first, last - first), room);
    if (d_weight.size() == 0) return;
    kernels::add_outer<Scalar>(d_logits, x.middleRows(first, last - first), d_weight.middleCols(first, last - first),
                               room);
  });
  if (d_bias.size() > 0) d_bias += d_logits.rowwise().sum();
}

}  // namespace moe
