/// @file  From logits to scores and weights, defined for every input.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <type_traits>

#include "moe/core/types.hpp"
#include "moe/kernels/elementary.hpp"
#include "moe/kernels/lanes.hpp"
#include "moe/kernels/load_padded.hpp"
#include "moe/kernels/multiply_add.hpp"
#include "moe/kernels/transpose.hpp"

namespace moe::inline MOE_TARGET {

/// How logits become scores s.
enum class Score {
  softmax,            ///< over all experts
  softmax_of_chosen,  ///< the largest logits choose; softmax over those alone
  sigmoid,            ///< each expert by itself
  sqrt_softplus,      ///< √log(1 + eˡ), each expert by itself
};

// In loops, not in Eigen's expressions: each of those costs every program that routes a tenth of a second of compile
// time, and sums in an order that depends on the processor and on where in memory a token's scores lie.

/// Σ s_i, in an order that the size alone decides: sixteen at a time, then by halves.
template <class Scores>
auto sum_of(const Scores& scores) {
  using Scalar = typename Scores::Scalar;
  using Register = kernels::Lanes<Scalar>;
  constexpr int L = kernels::lanes<Scalar>, registers = 16 / L;
  Register part[registers] = {};
  if constexpr (requires { scores.data(); }) {
    eigen_assert(scores.innerStride() == 1);
    for (Index i = 0; i < scores.size(); i += 16) {
      for (int r = 0; r < registers; ++r) {
        const Index at = std::min(i + r * L, scores.size());
        part[r] += kernels::load_padded<Register>(scores.data() + at, scores.size() - at);
      }
    }
  } else {
    for (Index i = 0; i < scores.size(); ++i) part[i % 16 / L][i % L] += scores(i);
  }
  for (int half = registers / 2; half > 0; half /= 2) {
    for (int r = 0; r < half; ++r) part[r] += part[r + half];
  }
  Register sum[L] = {part[0]};
  return kernels::sums<Scalar, 1>(sum)[0];
}

/// s_i / divisor.
template <class Scores>
void divide(Scores& scores, typename Scores::Scalar divisor) {
  for (Index i = 0; i < scores.size(); ++i) scores(i) /= divisor;
}

/// What is too small for a normal number becomes 0: Eigen's exp() of a register stops short of 0, and renormalising
/// would make shares of what it leaves.
template <class Scores>
void drop_subnormals(Scores&& scores) {
  using Scalar = typename std::remove_cvref_t<Scores>::Scalar;
  for (Index i = 0; i < scores.size(); ++i) {
    if (scores(i) < std::numeric_limits<Scalar>::min()) scores(i) = 0;
  }
}

/// s_i = exp(sign · l_i − shift), each computed in a whole register, wherever it stands. `scores` may be `logits`.
template <class Logits, class Scores>
void exponentiate(typename Logits::Scalar sign, const Logits& logits, typename Logits::Scalar shift, Scores& scores) {
  using Scalar = typename Logits::Scalar;
  constexpr int L = kernels::lanes<Scalar>;
  Eigen::Array<Scalar, L, 1> part;
  for (Index first = 0; first < logits.size(); first += L) {
    const Index filled = std::min<Index>(L, logits.size() - first);
    if constexpr (requires { logits.data(); }) {
      eigen_assert(logits.innerStride() == 1);
      kernels::store(part.data(),
                     sign * kernels::load_padded<kernels::Lanes<Scalar>>(logits.data() + first, filled) - shift);
    } else {
      for (Index i = 0; i < L; ++i) part(i) = i < filled ? sign * logits(first + i) - shift : Scalar(0);
    }
    part = part.exp();
    for (Index i = 0; i < filled; ++i) scores(first + i) = part(i);
  }
}

/// s_i = exp(l_i − max_j l_j), without overflow. As limits: 1 for each at +∞ and 0 for all others; 1 where all are at
/// −∞. A NaN makes all of them NaN. `scores` may be `logits`.
template <class Logits, class Scores>
void exponentials(const Logits& logits, Scores&& scores) {
  using Scalar = typename Logits::Scalar;
  constexpr Scalar infinity = std::numeric_limits<Scalar>::infinity();
  Scalar highest = -infinity;
  for (Index i = 0; i < logits.size(); ++i) {
    if (!(logits(i) <= highest)) highest = logits(i);
    if (std::isnan(highest)) break;
  }
  if (std::abs(highest) == infinity) {
    for (Index i = 0; i < logits.size(); ++i) scores(i) = Scalar(logits(i) == highest ? 1 : 0);
  } else {
    exponentiate(1, logits, highest, scores);
    drop_subnormals(scores);
  }
}

/// s_i = exp(l_i) / Σ_j exp(l_j): exponentials() by their sum. So experts at +∞ share all of it, all at −∞ share alike.
/// `scores` may be `logits`.
template <class Logits, class Scores>
void softmax(const Logits& logits, Scores&& scores) {
  exponentials(logits, scores);
  divide(scores, sum_of(scores));
}

/// s_i = 1 / (1 + exp(−l_i)). `scores` may be `logits`.
template <class Logits, class Scores>
void sigmoid(const Logits& logits, Scores&& scores) {
  exponentiate(-1, logits, 0, scores);
  for (Index i = 0; i < scores.size(); ++i) scores(i) = 1 / (1 + scores(i));
  drop_subnormals(scores);
}

using kernels::softplus;

/// s_i = √log(1 + exp(l_i)).
template <class Logits, class Scores>
void sqrt_softplus(const Logits& logits, Scores&& scores) {
  using Scalar = typename Logits::Scalar;
  for (Index i = 0; i < logits.size(); ++i) {
    const Scalar l = logits(i);
    scores(i) = std::isnan(l) ? l : std::sqrt(softplus(l));
  }
  drop_subnormals(scores);
}

/// w_i / max(‖w‖ + epsilon, floor), where ‖w‖ = (Σ_j w_jᵖ)^(1/p), and a floor of 0 is none; where that is 0 / 0 they
/// stay 0. Weights may be negative where p is 1 or 2.
template <class Weights, class Scalar = typename std::remove_cvref_t<Weights>::Scalar>
void renormalize(Weights&& weights, Scalar p, Scalar epsilon, Scalar floor) {
  Scalar sum = p == 1 ? sum_of(weights) : Scalar(0);
  for (Index i = 0; p != 1 && i < weights.size(); ++i) {
    sum = p == 2 ? kernels::multiply_add(weights(i), weights(i), sum) : sum + std::pow(weights(i), p);
  }
  const Scalar norm = p == 1 ? sum : p == 2 ? std::sqrt(sum) : std::pow(sum, 1 / p);
  const bool at_floor = floor > 0 && norm + epsilon < floor;
  const Scalar divisor = at_floor ? floor : norm + epsilon;  // a NaN stays one
  if (divisor != 0) divide(weights, divisor);
}

/// One token's scores. Those of softmax_of_chosen are the logits themselves, until experts are chosen.
template <class Logits, class Scores>
void score_logits(Score score, const Logits& logits, Scores&& scores) {
  switch (score) {
    case Score::softmax:
      return softmax(logits, scores);
    case Score::softmax_of_chosen:
      for (Index i = 0; i < logits.size(); ++i) scores(i) = logits(i);
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
  const Scalar sum = sum_of(scores);
  if (sum == 0) {
    for (Index i = 0; i < scores.size(); ++i) scores(i) = Scalar(1) / Scalar(scores.size());
  } else if (sum == std::numeric_limits<Scalar>::infinity()) {
    for (Index i = 0; i < scores.size(); ++i) scores(i) = Scalar(scores(i) == sum ? 1 : 0);
    divide(scores, sum_of(scores));
  } else {
    divide(scores, sum);
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
