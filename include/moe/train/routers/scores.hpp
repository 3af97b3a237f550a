/// @file  Gradients from scores back to logits.
#pragma once

#include <algorithm>
#include <cmath>
#include <span>

#include "moe/routers/scores.hpp"
#include "moe/routing.hpp"
#include "moe/scratch.hpp"
#include "moe/types.hpp"

namespace moe {

/// ds_i/dl_i of a score that looks at no other logit:  sigmoid s(1 − s),  sqrt_softplus σ(l) / 2s.
template <class Scalar>
Scalar score_slope(Score score, Scalar logit, Scalar s) {
  if (score == Score::sigmoid) return s * (Scalar(1) - s);
  return s > 0 ? 1 / (2 * s * (Scalar(1) + std::exp(-logit))) : Scalar(0);
}

/// Through p = softmax(l): turns ∂L/∂p into ∂L/∂l = p ⊙ (∂L/∂p − p·∂L/∂p).
template <class P, class Gradient>
void softmax_backward(const P& p, Gradient&& d) {
  const auto mean = p.dot(d);
  d = p.cwiseProduct((d.array() - mean).matrix());
}

/// Turns ∂L/∂p of a token's probabilities, which sum to one, into ∂L/∂logits.
/// @param p  probabilities(score, logits, p)
template <class Logits, class P, class Gradient>
void probabilities_backward(Score score, const Logits& logits, const P& p, Gradient& d) {
  using Scalar = typename Gradient::Scalar;
  d.array() -= p.dot(d);  // through the division by their sum, p = s / Σs, but for 1 / Σs …
  if (score == Score::softmax || score == Score::softmax_of_chosen) {
    d.array() *= p.array();
    return;
  }
  Gradient s(d.size());
  score_logits(score, logits, s);
  const Scalar sum = s.sum();
  for (Index e = 0; e < d.size(); ++e) d(e) *= sum > 0 ? score_slope(score, Scalar(logits(e)), s(e)) / sum : Scalar(0);
}

/// Through weights that are their routes' scores, be there any number of routes a token, in any order.
/// @param score     softmax, over all experts, sigmoid or sqrt_softplus
/// @param logits    (num_experts × n_tokens)
/// @param d_weight  ∂L/∂weight of each route
/// @param d_logits  (num_experts × n_tokens), added to
/// @param scratch   for intermediate results
template <class Scalar>
void scores_of_routes_backward(Score score, const ConstMatrixRef<Scalar>& logits, const Routing<Scalar>& routing,
                               std::span<const Scalar> d_weight, MatrixRef<Scalar> d_logits, Scratch& scratch) {
  auto s = scratch.matrix<Scalar>(logits.rows(), logits.cols());
  Scalar* const mean =
      scratch.array<Scalar>(logits.cols());  // Σ s·ds of each token: of a softmax, each logit lowers all
  for (Index t = 0; t < logits.cols(); ++t) score_logits(score, logits.col(t), s.col(t));
  std::fill_n(mean, logits.cols(), Scalar(0));
  for (Index r = 0; r < routing.size(); ++r) {
    const Index e = routing.expert[std::size_t(r)], t = routing.token[std::size_t(r)];
    const Scalar d = d_weight[std::size_t(r)];
    if (score == Score::softmax) {
      mean[t] += s(e, t) * d;
      d_logits(e, t) += s(e, t) * d;
    } else {
      d_logits(e, t) += score_slope(score, logits(e, t), s(e, t)) * d;
    }
  }
  if (score != Score::softmax) return;
  for (Index t = 0; t < logits.cols(); ++t) d_logits.col(t) -= mean[t] * s.col(t);
}

}  // namespace moe
