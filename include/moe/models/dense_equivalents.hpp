/// @file  The dense equivalents of a sparse layer.
#pragma once

#include <utility>

#include "moe/core/check.hpp"
#include "moe/core/types.hpp"
#include "moe/core/weight_stack.hpp"
#include "moe/experts/ffn_bank.hpp"
#include "moe/layers/dense.hpp"
#include "moe/layers/moe_layer.hpp"

namespace moe::inline MOE_TARGET {

/// The first `count` experts of a bank side by side as one dense FFN of width count · d_ff; it computes their sum.
/// @throws std::invalid_argument unless 1 ≤ count ≤ num_experts.
template <class W, class Act>
DenseLayer<FfnBank<W, Act>> concatenate(const FfnBank<W, Act>& bank, Index count) {
  require_between(1, count, bank.num_experts(), "concatenate: count");
  const Index d = bank.d_model(), ff = bank.d_ff();
  constexpr bool is_gated = FfnBank<W, Act>::is_gated;
  WeightStack<W> gate(is_gated ? 1 : 0, count * ff, d), up(1, count * ff, d), down(1, d, count * ff);
  for (Index e = 0; e < count; ++e) {
    if constexpr (is_gated) gate.owned(0).middleRows(e * ff, ff) = bank.w_gate()[e];
    up.owned(0).middleRows(e * ff, ff) = bank.w_up()[e];
    down.owned(0).middleCols(e * ff, ff) = bank.w_down()[e];
  }
  using Scalar = ActivationScalar<W>;
  const auto beside = [&](const Matrix<Scalar>& bias) -> Matrix<Scalar> {
    return bias.size() > 0 ? Matrix<Scalar>(bias.leftCols(count).reshaped()) : Matrix<Scalar>();
  };
  const auto& [b_gate, b_up, b_down] = bank.biases();
  FfnBiases<Scalar> biases{beside(b_gate), beside(b_up), {}};
  if (b_down.size() > 0) biases.down = b_down.leftCols(count).rowwise().sum();
  return DenseLayer(
      FfnBank<W, Act>::of(std::move(gate), std::move(up), std::move(down), bank.activation(), std::move(biases)));
}

/// The dense FFN that costs a token as much as the sparse layer does: width top_k · d_ff.
template <class R, class W, class Act>
auto dense_of_equal_active_size(const MoeLayer<R, FfnBank<W, Act>>& layer) {
  return concatenate(layer.experts(), layer.router().top_k());
}

/// The dense FFN that has as many parameters as the sparse layer: width num_experts · d_ff.
template <class R, class W, class Act>
auto dense_of_equal_total_size(const MoeLayer<R, FfnBank<W, Act>>& layer) {
  return concatenate(layer.experts(), layer.num_experts());
}

}  // namespace moe::inline MOE_TARGET
