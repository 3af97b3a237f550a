/// @file  The linear layer that most routers begin with.
#pragma once

#include "moe/core/routing.hpp"
#include "moe/core/types.hpp"
#include "moe/kernels/matmul.hpp"
#include "moe/runtime/workers.hpp"

namespace moe::inline MOE_TARGET {

template <class Scalar>
using LogitsMap = Eigen::Map<Matrix<Scalar>>;

/// Room for the logits of a routing, (num_experts × n_tokens), not written yet.
template <class Scalar>
LogitsMap<Scalar> make_logits(Index num_experts, Index num_tokens, Routing<Scalar>& routing) {
  routing.logits.resize(std::size_t(num_experts * num_tokens));
  return {routing.logits.data(), num_experts, num_tokens};
}

/// The logits of a routing, as a matrix.
template <class Scalar>
Eigen::Map<const Matrix<Scalar>> logits_of(const Routing<Scalar>& routing, Index num_experts, Index num_tokens) {
  return {routing.logits.data(), num_experts, num_tokens};
}

/// routing.logits = W·x + bias, where the bias may be empty.
/// @param weight  (num_experts × d_model)
template <class Scalar>
LogitsMap<Scalar> linear_logits(const Weight<Scalar>& weight, const Eigen::Matrix<Scalar, Eigen::Dynamic, 1>& bias,
                                const ConstMatrixRef<Scalar>& x, Routing<Scalar>& routing, Workers& workers) {
  LogitsMap<Scalar> logits = make_logits(weight.rows(), x.cols(), routing);
  kernels::matmul<Scalar, Scalar>(map_of(weight), x, logits, workers);
  for (Index i = 0; i < (bias.size() > 0 ? logits.size() : 0); ++i) logits.data()[i] += bias(i % bias.size());
  return logits;
}

}  // namespace moe::inline MOE_TARGET
