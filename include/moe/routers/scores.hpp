/// @file  From logits to scores and weights, defined for every input.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <type_traits>

#include "moe/kernels/elementary.hpp"
#include "moe/kernels/vectors.hpp"
#include "moe/types.hpp"

namespace moe::inline MOE_TARGET {

/// How logits become scores s.
enum class Score {
  softmax,            ///< over all experts
  softmax_of_chosen,  ///< the largest logits choose; softmax over those alone
  sigmoid,            ///< each expert by itself
  sqrt_softplus,      ///< √log(1 + eˡ), each expert by itself
};

/// What is too small for a normal number becomes 0: Eigen's vectorised exp() stops short of 0 where its scalar one, for
/// the last few elements, does not; and renormalising would make shares of what it leaves.
template <class Scores>
void drop_subnormals(Scores&& scores) {
  using Scalar = typename std::remove_cvref_t<Scores>::Scalar;
  scores = (scores.array() < std::numeric_limits<Scalar>::min()).select(Scalar(0), scores);
}

/// s_i = exp(l_i − max_j l_j), without overflow. As limits: 1 for each at +∞ and 0 for all others; 1 where all are at
/// −∞. A NaN makes all of them NaN. `scores` may be `logits`.
template <class Logits, class Scores>
void exponentials(const Logits& logits, Scores&& scores) {
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
}

/// s_i = exp(l_i) / Σ_j exp(l_j): exponentials() by their sum. So experts at +∞ share all of it, all at −∞ share alike.
/// `scores` may be `logits`.
template <class Logits, class Scores>
void softmax(const Logits& logits, Scores&& scores) {
  exponentials(logits, scores);
  scores /= scores.sum();
}

/// s_i = 1 / (1 + exp(−l_i)). `scores` may be `logits`.
template <class Logits, class Scores>
void sigmoid(const Logits& logits, Scores&& scores) {
  using Scalar = typename Logits::Scalar;
  scores = (Scalar(1) + (-logits.array()).exp()).inverse();
  drop_subnormals(scores);
}

using kernels::softplus;

/// s_i = √log(1 + exp(l_i)).
template <class Logits, class Scores>
void sqrt_softplus(const Logits& logits, Scores&& scores) {
  using Scalar = typename Logits::Scalar;
  if constexpr (std::is_same_v<Scalar, float>) {
    scores = logits.unaryExpr(kernels::OnRegisters<kernels::SoftplusOf>());
  } else {
    scores = logits.unaryExpr([](Scalar l) { return std::isnan(l) ? l : softplus(l); });
  }
  scores = scores.unaryExpr([](Scalar s) { return std::sqrt(s); });  // Eigen's vectorised one is not always exact
  drop_subnormals(scores);
}

/// w_i / max(‖w‖ + epsilon, floor), where ‖w‖ = (Σ_j w_jᵖ)^(1/p) of weights ≥ 0; where that is 0 / 0 they stay 0.
template <class Weights, class Scalar = typename std::remove_cvref_t<Weights>::Scalar>
void renormalize(Weights&& weights, Scalar p, Scalar epsilon, Scalar floor) {
  const Scalar norm = p == 1 ? weights.sum() : p == 2 ? std::sqrt(kernels::dot(weights, weights)) : std::pow(weights.array().pow(p).sum(), 1 / p);
  const Scalar divisor = norm + epsilon < floor ? floor : norm + epsilon;  // a NaN stays one
  if (divisor != 0) weights /= divisor;
}

/// One token's scores. Those of softmax_of_chosen are the logits themselves, until experts are chosen.
template <class Logits, class Scores>
void score_logits(Score score, const Logits& logits, Scores&& scores) {
  switch (score) {
    case Score::softmax:
      return softmax(logits, scores);
    case Score::softmax_of_chosen:
      scores = logits;
      return;
    case Score::sigmoid:
      return sigmoid(logits, scores);
    case Score::sqrt_softplus:
      return sqrt_softplus(logits, scores);
  }
}

/// Makes the scores of a token sum to one. As limits: infinite scores share all, and scores that are all 0 share alike.
template <class Scores>
void share_out(Scores&& scores) {
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

/// The probabilities p of one token, which sum to one: a softmax, or scores divided by their sum; softmax_of_chosen is
/// taken as softmax. A NaN makes all of them NaN.
template <class Logits, class P>
void probabilities(Score score, const Logits& logits, P&& p) {
  if (score == Score::softmax_of_chosen) score = Score::softmax;
  score_logits(score, logits, p);
  if (score != Score::softmax) share_out(p);
}

}  // namespace moe::inline MOE_TARGET
