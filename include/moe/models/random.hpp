/// @file  Random weights that are the same on every machine.
#pragma once

#include <cmath>
#include <cstdint>
#include <utility>

#include "moe/core/random_number.hpp"
#include "moe/core/types.hpp"
#include "moe/core/weight_stack.hpp"
#include "moe/experts/ffn_bank.hpp"

namespace moe::inline MOE_TARGET {

/// (rows × cols) tokens, uniform with variance 1.
/// @throws std::invalid_argument if a size is negative.
template <class S>
Matrix<S> random_tokens(Index rows, Index cols, std::uint64_t seed) {
  detail::require_sizes(rows, cols, "random_tokens");
  Matrix<S> x(rows, cols);
  for (Index i = 0; i < x.size(); ++i) {
    x.data()[i] = static_cast<S>(std::sqrt(3.0f) * random_number(seed, static_cast<std::uint64_t>(i)));
  }
  return x;
}

namespace detail {

template <class W>
void fill_at_random(W* w, Index rows, Index cols, std::uint64_t seed) {
  const float scale = std::sqrt(3.0f / static_cast<float>(cols));
  for (Index i = 0; i < rows * cols; ++i) {
    w[i] = static_cast<W>(scale * random_number(seed, static_cast<std::uint64_t>(i)));
  }
}

}  // namespace detail

/// (rows × cols), uniform with variance 1/cols, so that outputs vary as much as inputs.
/// @throws std::invalid_argument if a size is negative.
template <class W>
Weight<W> random_weight(Index rows, Index cols, std::uint64_t seed) {
  detail::require_sizes(rows, cols, "random_weight");
  Weight<W> w(rows, cols);
  detail::fill_at_random(w.data(), rows, cols, seed);
  return w;
}

/// One random_weight for each expert.
/// @throws std::invalid_argument as WeightStack.
template <class W>
WeightStack<W> random_stack(Index num_experts, Index rows, Index cols, std::uint64_t seed) {
  WeightStack<W> weights(num_experts, rows, cols);
  for (Index e = 0; e < num_experts; ++e) {
    detail::fill_at_random(weights.owned(e).data(), rows, cols, seed * 0x10001 + static_cast<std::uint64_t>(e));
  }
  return weights;
}

/// num_experts FFNs with random weights, gated or not.
/// @throws std::invalid_argument as WeightStack.
template <class W, class Act = SwiGlu>
FfnBank<W, Act> random_bank(Index num_experts, Index d_model, Index d_ff, std::uint64_t seed, const Act& act = {}) {
  auto up = random_stack<W>(num_experts, d_ff, d_model, seed * 3 + 1),
       down = random_stack<W>(num_experts, d_model, d_ff, seed * 3 + 2);
  if constexpr (FfnBank<W, Act>::is_gated) {
    return {random_stack<W>(num_experts, d_ff, d_model, seed * 3), std::move(up), std::move(down), act};
  } else {
    return {std::move(up), std::move(down), act};
  }
}

}  // namespace moe::inline MOE_TARGET
