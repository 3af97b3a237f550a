/// @file  What the logits of one token say, whatever its router made of them.
#pragma once

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <type_traits>

#include "moe/routers/scores.hpp"
#include "moe/routers/top_k.hpp"
#include "moe/types.hpp"

namespace moe::detail {

/// Makes the scores of a token sum to one. As limits: infinite scores share all, and scores that are all 0 share alike.
template <class Scores>
void normalize_scores(Scores&& scores) {
  using Scalar = typename std::remove_cvref_t<Scores>::Scalar;
  const Scalar sum = scores.sum();
  if (sum == 0) {
    scores.setConstant(Scalar(1) / Scalar(scores.size()));
  } else if (sum == std::numeric_limits<Scalar>::infinity()) {
    scores = (scores.array() == sum).template cast<Scalar>();
    scores /= scores.sum();
  } else {
    scores /= sum;
  }
}

/// The probabilities p of one token: see RoutingStatsOptions. A NaN makes all of them NaN.
template <class Logits, class P>
void probabilities(const Logits& logits, Score score, P&& p) {
  switch (score) {
    case Score::softmax:
    case Score::softmax_of_chosen:
      return softmax(logits, p);
    case Score::sigmoid:
      sigmoid(logits, p);
      return normalize_scores(p);
    case Score::sqrt_softplus:
      sqrt_softplus(logits, p);
      return normalize_scores(p);
  }
}

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

}  // namespace moe::detail
