/// @file  Where the logits of a routing lie, beside the state.
#pragma once

#include "moe/core/routing.hpp"
#include "moe/core/types.hpp"

namespace moe::inline MOE_TARGET {

template <class Scalar>
using LogitsMap = Eigen::Map<Matrix<Scalar>>;

/// Room for the logits of a routing, (num_experts × n_tokens), not written yet.
template <class Scalar>
LogitsMap<Scalar> make_logits(Index num_experts, Index num_tokens, Routing<Scalar>& routing) {
  routing.logits.resize(std::size_t(num_experts * num_tokens));
  return {routing.logits.data(), num_experts, num_tokens};
}

/// The same for its state, (state_size × n_tokens).
template <class Scalar>
LogitsMap<Scalar> make_state(Index state_size, Index num_tokens, Routing<Scalar>& routing) {
  routing.state.resize(std::size_t(state_size * num_tokens));
  return {routing.state.data(), state_size, num_tokens};
}

/// The logits of a routing, as a matrix.
template <class Scalar>
Eigen::Map<const Matrix<Scalar>> logits_of(const Routing<Scalar>& routing, Index num_experts, Index num_tokens) {
  return {routing.logits.data(), num_experts, num_tokens};
}

}  // namespace moe::inline MOE_TARGET
