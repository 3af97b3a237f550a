/// @file  How sure a router was of one token.
#pragma once

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>

#include "moe/core/types.hpp"

namespace moe::inline MOE_TARGET::detail {

/// −Σ p ln p, in nats; 0 ln 0 is 0.
template <class P>
double entropy(const P& p) {
  using Scalar = typename P::Scalar;
  const auto nonzero = p.array().max(std::numeric_limits<Scalar>::min());
  return std::max(0.0, -static_cast<double>((p.array() * nonzero.log()).sum()));
}

/// The k-th largest of n logits minus the one that comes next, 1 ≤ k < n; equal ones are 0 apart, infinite or not.
/// Reorders the logits, of which none may be NaN.
template <class Scalar>
double margin(Scalar* logits, Index n, Index k) {
  std::nth_element(logits, logits + k - 1, logits + n, std::greater<>());
  const Scalar last = logits[k - 1], next = *std::max_element(logits + k, logits + n);
  return last == next ? 0 : static_cast<double>(last) - static_cast<double>(next);
}

}  // namespace moe::inline MOE_TARGET::detail
