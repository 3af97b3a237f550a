/// @file  A group of gated FFN experts.
#pragma once

#include "moe/experts/activation.hpp"
#include "moe/experts/ffn_bank.hpp"

namespace moe::inline MOE_TARGET {

/// expert(x) = W_down · act(W_gate · x + b_gate, W_up · x + b_up) + b_down.
template <class W, class Act = SwiGlu>
using GatedFfnBank = FfnBank<W, Act>;

template <class Scalar>
using GatedFfnBiases = FfnBiases<Scalar>;  ///< Of a bank whose experts have a gate.

}  // namespace moe::inline MOE_TARGET
