/// @file  Gradients from scores back to logits.
#pragma once

#include <cmath>
#include <cstddef>
#include <span>

#include "moe/core/routing.hpp"
#include "moe/core/scratch.hpp"
#include "moe/core/types.hpp"
#include "moe/kernels/scores.hpp"
#include "moe/kernels/vectors.hpp"
#include "moe/runtime/workers.hpp"

namespace moe::inline MOE_TARGET {

/// ds_i/dl_i of a score that looks at no other logit:  sigmoid s(1 − s),  sqrt_softplus σ(l) / 2s.
template <class Scalar>
Scalar score_slope(Score score, Scalar logit, Scalar s) {
  if (score == Score::sigmoid) return s * (Scalar(1) - s);
  return s > 0 ? 1 / (2 * s * (Scalar(1) + std::exp(-logit))) : Scalar(0);
}

/// Through p = softmax(l): turns ∂L/∂p into ∂L/∂l = p ⊙ (∂L/∂p − p·∂L/∂p).
template <class P, class Gradient>
void softmax_backward(const P& p, Gradient&& d) {
  const auto mean = kernels::dot(p, d);
  d = p.cwiseProduct((d.array() - mean).matrix());
}

/// Turns ∂L/∂s of a token's scores into ∂L/∂logits. An expert with ∂L/∂s = 0 costs nothing, unless it is a softmax.
/// @param s  score_logits(score, logits, s)
template <class Logits, class S, class Gradient>
void score_backward(Score score, const Logits& logits, const S& s, Gradient&& d) {
  using Scalar = typename S::Scalar;
  if (score == Score::softmax) return softmax_backward(s, d);
  if (score == Score::softmax_of_chosen) return;  // s are the logits themselves
  for (Index e = 0; e < d.size(); ++e) {
    if (d(e) != 0) d(e) *= score_slope(score, Scalar(logits(e)), Scalar(s(e)));
  }
}

/// Turns ∂L/∂p of a token's probabilities, which sum to one, into ∂L/∂logits.
/// @param p  probabilities(score, logits, p)
template <class Logits, class P, class Gradient>
void probabilities_backward(Score score, const Logits& logits, const P& p, Gradient& d) {
  if (score == Score::softmax || score == Score::softmax_of_chosen) return softmax_backward(p, d);
  Gradient s(d.size());
  score_logits(score, logits, s);
  const auto sum = s.sum(), mean = kernels::dot(p, d);  // p = s / Σs
  if (sum > 0) {
    d.array() = (d.array() - mean) / sum;
  } else {
    d.setZero();
  }
  score_backward(score, logits, s, d);
}

/// Through weights that are their routes' scores, be there any number of routes a token, in any order.
/// @param logits    (num_experts × n_tokens)
/// @param d_weight  ∂L/∂weight of each route
/// @param d_logits  (num_experts × n_tokens), added to
template <class Scalar>
void scores_of_routes_backward(Score score, const ConstMatrixRef<Scalar>& logits, const Routing<Scalar>& routing,
                               std::span<const Scalar> d_weight, MatrixRef<Scalar> d_logits, Workers& workers) {
  auto d = workers.shared().matrix<Scalar>(logits.rows(), logits.cols());
  d.setZero();
  for (std::size_t r = 0; r < routing.token.size(); ++r) d(routing.expert[r], routing.token[r]) += d_weight[r];
  workers.for_each_band(logits.cols(), 16, [&](Index first, Index last, Scratch& scratch) {
    auto s = scratch.matrix<Scalar>(logits.rows(), 1);
    for (Index t = first; t < last; ++t) {
      score_logits(score, logits.col(t), s.col(0));
      score_backward(score, logits.col(t), s.col(0), d.col(t));
      d_logits.col(t) += d.col(t);
    }
  });
}

}  // namespace moe::inline MOE_TARGET
