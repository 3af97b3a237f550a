/// @file  A batch of tokens as a router sees it.
#pragma once

#include <concepts>
#include <cstdint>
#include <optional>
#include <span>

#include "moe/core/routing.hpp"
#include "moe/core/types.hpp"

namespace moe::inline MOE_TARGET {

/// What the caller may say of the tokens beside x. Each router tells which of it it reads; all may stay empty.
template <class Scalar>
struct SideInputs {
  /// (n_tokens) Each token's number in the vocabulary. TokenHash reads it.
  std::span<const Index> token_ids = {};

  /// x is sequences of so many tokens, one after the other; 0: it is one. For what is counted per sequence.
  Index sequence_length = 0;

  /// (num_experts × n_tokens), column by column: the random numbers of a router that adds noise; where there are none
  /// they are drawn from `seed` (another one for each step, please); where there is no seed either, nothing is added.
  std::span<const Scalar> noise = {};
  std::optional<std::uint64_t> seed = {};

  /// (num_experts × n_tokens), column by column: what the router of the layer before this one computed.
  std::span<const Scalar> previous_logits = {};

  /// Routes to take instead of choosing any, and how many tokens they are of (0: not said). Replay reads them.
  const Routing<Scalar>* recorded = nullptr;
  Index recorded_tokens = 0;
};

/// x (d_model × n_tokens), and what is said of it. A router that needs x alone takes a ConstMatrixRef: this converts.
template <class Scalar>
struct Tokens {
  ConstMatrixRef<Scalar> x;
  SideInputs<Scalar> side = {};

  template <class X>
    requires std::convertible_to<const X&, ConstMatrixRef<Scalar>>
  Tokens(const X& its_x, const SideInputs<Scalar>& its_side = {}) : x(its_x), side(its_side) {}

  operator const ConstMatrixRef<Scalar>&() const { return x; }

  Index count() const { return x.cols(); }
};

template <class X, class Scalar>
Tokens(const X&, const SideInputs<Scalar>&) -> Tokens<Scalar>;

}  // namespace moe::inline MOE_TARGET
