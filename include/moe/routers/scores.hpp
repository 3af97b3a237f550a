/// @file  From logits to scores and weights, defined for every input.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <type_traits>

#include "moe/types.hpp"

namespace moe {

/// What is too small for a normal number becomes 0: Eigen's vectorised exp() stops short of 0 where its scalar one, for
/// the last few elements, does not; and renormalising would make shares of what it leaves.
template <class Scores>
void drop_subnormals(Scores&& scores) {
  using Scalar = typename std::remove_cvref_t<Scores>::Scalar;
  scores = (scores.array() < std::numeric_limits<Scalar>::min()).select(Scalar(0), scores);
}

/// s_i = exp(l_i) / Σ_j exp(l_j), without overflow. As limits: experts at +∞ share all of it, all at −∞ share alike.
/// A NaN makes all scores NaN. `scores` may be `logits`.
template <class Logits, class Scores>
void softmax(const Logits& logits, Scores&& scores) {
  using Scalar = typename Logits::Scalar;
  constexpr Scalar infinity = std::numeric_limits<Scalar>::infinity();
  const Scalar highest = logits.template maxCoeff<Eigen::PropagateNaN>();
  if (highest == infinity) {
    scores = (logits.array() == infinity).template cast<Scalar>();
  } else if (highest == -infinity) {
    scores.setOnes();
  } else {
    scores = (logits.array() - highest).exp();
    drop_subnormals(scores);
  }
  scores /= scores.sum();
}

/// s_i = 1 / (1 + exp(−l_i)). `scores` may be `logits`.
template <class Logits, class Scores>
void sigmoid(const Logits& logits, Scores&& scores) {
  using Scalar = typename Logits::Scalar;
  scores = (Scalar(1) + (-logits.array()).exp()).inverse();
  drop_subnormals(scores);
}

/// log(1 + exp(l)), without overflow.
template <class Scalar>
Scalar softplus(Scalar l) {
  return std::max(l, Scalar(0)) + std::log1p(std::exp(-std::abs(l)));
}

/// s_i = √log(1 + exp(l_i)).
template <class Logits, class Scores>
void sqrt_softplus(const Logits& logits, Scores&& scores) {
  using Scalar = typename Logits::Scalar;
  scores = logits.unaryExpr([](Scalar l) { return std::isnan(l) ? l : std::sqrt(softplus(l)); });
  drop_subnormals(scores);
}

/// w_i / max(‖w‖ + epsilon, floor), where ‖w‖ = (Σ_j w_jᵖ)^(1/p) of weights ≥ 0; where that is 0 / 0 they stay 0.
template <class Weights, class Scalar = typename std::remove_cvref_t<Weights>::Scalar>
void renormalize(Weights&& weights, Scalar p, Scalar epsilon, Scalar floor) {
  const Scalar norm = p == 1 ? weights.sum() : p == 2 ? weights.norm() : std::pow(weights.array().pow(p).sum(), 1 / p);
  const Scalar divisor = norm + epsilon < floor ? floor : norm + epsilon;  // a NaN stays one
  if (divisor != 0) weights /= divisor;
}

}  // namespace moe
