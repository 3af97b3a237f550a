/// @file  A batch of tokens as a router sees it.
#pragma once

#include <concepts>
#include <cstdint>
#include <iterator>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "moe/core/check.hpp"
#include "moe/core/routing.hpp"
#include "moe/core/token_mask.hpp"
#include "moe/core/types.hpp"

namespace moe::inline MOE_TARGET {

/// What the caller may say of the tokens beside x. Each router tells which of it it reads; all may stay empty.
template <class Scalar>
struct SideInputs {
  /// (n_tokens) Which tokens are real, and which are padding. A layer leaves padding out before anything else sees it:
  /// routers, filters and experts get the real tokens alone, side by side, with what is said of them here, and so give
  /// them the very bits that they have without padding. y of padding is 0; so is its gradient, whatever its x and d_y.
  TokenMask mask = {};

  /// (n_tokens) Each token's number in the vocabulary. TokenHash reads it.
  std::span<const Index> token_ids = {};

  /// (n_tokens) What each token is of: 0 for text, 1 for vision, or whatever the model says; empty: all are 0.
  /// TopKByModality reads it.
  std::span<const std::uint8_t> modality = {};

  /// x is sequences of so many tokens, one after the other; 0: it is one. For what is counted per sequence.
  Index sequence_length = 0;

  /// (num_sequences + 1) Where each sequence begins, then n_tokens, if they are not all of one length.
  std::span<const Index> sequence_starts = {};

  /// (d_model × n_tokens), column by column: what the router of a MoeLayer reads in place of x, which then goes to the
  /// experts alone. Gemma 4 (the residual, before the norm of the experts' input), SmallThinker (the input of
  /// attention).
  std::span<const Scalar> router_input = {};

  /// (num_experts × n_tokens), column by column: the random numbers of a router that adds noise; where there are none
  /// they are drawn from `seed` (another one for each step, please); where there is no seed either, nothing is added.
  std::span<const Scalar> noise = {};
  std::optional<std::uint64_t> seed = {};

  /// (num_experts × n_tokens), column by column: what the router of the layer before this one computed.
  std::span<const Scalar> previous_logits = {};

  /// (state size × n_tokens), column by column: Routing::state of the layer before this one. MlpLogits reads it.
  std::span<const Scalar> previous_state = {};

  /// (state size × n_tokens), in a backward pass: ∂L/∂ what this layer left in Routing::state, by what the next layer
  /// made of it. The router adds its own part; then it is whole, for carried_backward() to the layer before.
  std::span<Scalar> state_gradient = {};

  /// Routes to take instead of choosing any, and how many tokens they are of (0: not said). Replay reads them.
  const Routing<Scalar>* recorded = nullptr;
  Index recorded_tokens = 0;
};

/// x (d_model × n_tokens), and what is said of it. A router that needs x alone takes a ConstMatrixRef: this converts.
template <class Scalar>
struct Tokens {
  ConstMatrixRef<Scalar> x;
  SideInputs<Scalar> side = {};

  /// Of a matrix, a block, or a map; both are referred to.
  template <class X>
    requires std::convertible_to<const X&, ConstMatrixRef<Scalar>>
  Tokens(const X& its_x, const SideInputs<Scalar>& its_side = {}) : x(its_x), side(its_side) {}

  operator const ConstMatrixRef<Scalar>&() const { return x; }  ///< Tokens that are told of are tokens.

  Index count() const { return x.cols(); }  ///< How many tokens there are.
};

template <class X, class Scalar>
Tokens(const X&, const SideInputs<Scalar>&) -> Tokens<Scalar>;  ///< The side inputs say which Scalar it is.

/// Tokens as the router of a layer sees them: side.router_input, if it is there, or else x.
/// @param written  what is written while the router's input is still read
/// @throws std::invalid_argument naming both sizes if that input has another one than x, or if it overlaps `written`.
template <class Scalar>
Tokens<Scalar> tokens_of_router(const ConstMatrixRef<Scalar>& x, const SideInputs<Scalar>& side,
                                const MatrixRef<Scalar>& written, std::string_view who) {
  if (side.router_input.empty()) return {x, side};
  const Index size = std::ssize(side.router_input);
  if (size != x.size()) require_equal(size, x.size(), std::string(who) + ": side.router_input.size()");
  const ColumnsMap<Scalar> input(side.router_input.data(), x.rows(), x.cols(), Eigen::OuterStride<>(x.rows()));
  if (overlap(input, written)) require(false, std::string(who) + ": side.router_input overlaps what is written");
  return {input, side};
}

}  // namespace moe::inline MOE_TARGET
