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
#include "moe/kernels/registers.hpp"
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
  using Register = kernels::Lanes<typename Scores::Scalar>;
  kernels::for_each_register(
      scores.size(), [divisor](Register& s) __attribute__((always_inline)) { s = s / (divisor - Register{}); },
      scores.data());
}

namespace detail {

/// The larger of each, and NaN where one is.
template <class Register>
MOE_INLINE Register larger_number(const Register& a, const Register& b) {
  return ((b <= a) | (a != a)) ? a : b;
}

/// The largest lane, or NaN.
template <class Scalar, int size = kernels::lanes<Scalar> / 2>
MOE_INLINE Scalar largest_number(const kernels::Lanes<Scalar>& v) {
  if constexpr (size == 0) {
    return v[0];
  } else {
    return largest_number<Scalar, size / 2>(larger_number(v, kernels::swapped_blocks<Scalar, size>(v)));
  }
}

}  // namespace detail

/// max_i l_i, or NaN if one is; −∞ of none.
template <class Logits>
auto largest_of(const Logits& logits) {
  using Scalar = typename Logits::Scalar;
  using Register = kernels::Lanes<Scalar>;
  constexpr Index L = kernels::lanes<Scalar>;
  const Register lowest = -std::numeric_limits<Scalar>::infinity() - Register{};
  Register most = lowest, place;
  for (int i = 0; i < L; ++i) place[i] = Scalar(i);
  for (Index first = 0; first < logits.size(); first += L) {
    const Index left = logits.size() - first;
    const auto some = kernels::load_padded<Register>(logits.data() + first, left);
    const Register filled = Scalar(std::min(left, L)) - Register{};
    most = detail::larger_number(most, Register(place < filled ? some : lowest));
  }
  return detail::largest_number<Scalar>(most);
}

/// What is too small for a normal number becomes 0: Eigen's exp() of a register stops short of 0, and renormalising
/// would make shares of what it leaves.
template <class Register>
MOE_INLINE Register without_subnormals(const Register& s) {
  using Scalar = std::remove_cvref_t<decltype(s[0])>;
  return s < std::numeric_limits<Scalar>::min() - Register{} ? Register{} : s;
}

/// s_i = f(l_i), register by register. `scores` may be `logits`.
template <class Logits, class Scores, class F>
void score_each(const Logits& logits, Scores& scores, const F& f) {
  using Register = kernels::Lanes<typename Logits::Scalar>;
  eigen_assert(logits.innerStride() == 1 && scores.innerStride() == 1);
  const typename Logits::Scalar* const from = logits.data();
  kernels::for_each_register(
      logits.size(), [&f](const Register& l, Register& s) __attribute__((always_inline)) { s = f(l); }, from,
      scores.data());
}

/// s_i = exp(l_i − max_j l_j), without overflow. As limits: 1 for each at +∞ and 0 for all others; 1 where all are at
/// −∞. A NaN makes all of them NaN. `scores` may be `logits`.
template <class Logits, class Scores>
void exponentials(const Logits& logits, Scores&& scores) {
  using Scalar = typename Logits::Scalar;
  using Register = kernels::Lanes<Scalar>;
  const Scalar highest = largest_of(logits);
  if (std::abs(highest) == std::numeric_limits<Scalar>::infinity()) {
    for (Index i = 0; i < logits.size(); ++i) scores(i) = Scalar(logits(i) == highest ? 1 : 0);
  } else {
    score_each(logits, scores, [highest](const Register& l) __attribute__((always_inline)) {
      return without_subnormals(kernels::exponential(Register(l - highest)));
    });
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
  using Register = kernels::Lanes<typename Logits::Scalar>;
  score_each(logits, scores, [](const Register& l) __attribute__((always_inline)) {
    const Register one = typename Logits::Scalar(1) - Register{};
    return without_subnormals(Register(one / (one + kernels::exponential(Register(-l)))));
  });
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
  using Register = kernels::Lanes<Scalar>;
  score_each(scores, scores, [](const Register& s) __attribute__((always_inline)) { return without_subnormals(s); });
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
