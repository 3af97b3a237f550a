/// @file  A bank of coded weights with rows interleaved, which few tokens meet faster.
#pragma once

#include <stdexcept>
#include <string>
#include <utility>

#include "moe/core/quantized.hpp"
#include "moe/core/types.hpp"
#include "moe/experts/ffn_bank.hpp"
#include "moe/formats/packed.hpp"
#include "moe/layers/moe_layer.hpp"

namespace moe::inline MOE_TARGET {

/// The same experts, with a copy of their weights that packed(WeightStack) makes: about as many bytes once more, and
/// none of the bank's own are needed any longer. Exact answers have the same bits, fast ones another order of sums.
/// @throws std::invalid_argument naming matrix, expert and format where one has no packed form.
template <class Act>
FfnBank<Quantized, Act> packed(const FfnBank<Quantized, Act>& bank) {
  auto gate = packed(bank.w_gate(), "w_gate"), up = packed(bank.w_up(), "w_up"), down = packed(bank.w_down(), "w_down");
  return FfnBank<Quantized, Act>::of(std::move(gate), std::move(up), std::move(down), bank.activation(), bank.biases());
}

/// A layer with its experts so.
template <class R, class Act>
MoeLayer<R, FfnBank<Quantized, Act>> packed(const MoeLayer<R, FfnBank<Quantized, Act>>& layer) {
  return {layer.router(), packed(layer.experts())};
}

/// Bytes of the codes and scales that a packed stack holds.
/// @throws std::invalid_argument naming the expert and its format if that is not packed.
inline Index packed_bytes(const WeightStack<Quantized>& stack) {
  Index bytes = 0;
  for (Index e = 0; e < stack.num_experts(); ++e) {
    const QuantizedMatrix& its = stack[e];
    if (find_packed_format(its.format().name) == nullptr) {
      throw std::invalid_argument("packed_bytes: expert " + std::to_string(e) + " is " + its.format().name +
                                  ", expected a packed format: packed(bank)");
    }
    const Index panels = packing::panels_of(its.rows());
    bytes += panels * (its.codes.row_bytes + its.scales.row_bytes);
  }
  return bytes;
}

/// The same of a bank.
template <class Act>
Index packed_bytes(const FfnBank<Quantized, Act>& bank) {
  return packed_bytes(bank.w_gate()) + packed_bytes(bank.w_up()) + packed_bytes(bank.w_down());
}

}  // namespace moe::inline MOE_TARGET
