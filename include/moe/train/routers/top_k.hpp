/// @file  Gradients from the weights of chosen experts back to logits.
#pragma once

#include <cmath>
#include <cstddef>
#include <span>
#include <type_traits>

#include "moe/core/routing.hpp"
#include "moe/core/scratch.hpp"
#include "moe/core/types.hpp"
#include "moe/kernels/multiply_add.hpp"
#include "moe/kernels/scores.hpp"
#include "moe/kernels/vectors.hpp"
#include "moe/routers/top_k.hpp"
#include "moe/runtime/workers.hpp"
#include "moe/train/routers/detail/scores.hpp"

namespace moe::inline MOE_TARGET {

/// Through w = s / D, D = max(‖s‖ + epsilon, floor):  ds = dw/D − (Σ dw·s)/D² · (s/‖s‖)^(p−1), whose second part is
/// missing where the floor holds. ds may be dw.
template <class Scores, class Gradient, class Scalar = typename Scores::Scalar>
void renormalize_backward(const Scores& s, Scalar p, Scalar epsilon, Scalar floor, const Gradient& dw, Gradient& ds) {
  const Scalar norm = p == 1   ? s.sum()
                      : p == 2 ? std::sqrt(kernels::dot(s, s))
                               : std::pow(s.array().pow(p).sum(), 1 / p);
  const bool at_floor = norm + epsilon < floor;
  const Scalar divisor = at_floor ? floor : norm + epsilon;
  if (divisor == 0) {
    ds = dw;
  } else if (at_floor || norm == 0) {
    ds = dw / divisor;
  } else {
    const Scalar along = kernels::dot(dw, s) / (divisor * divisor);
    ds = dw / divisor;
    if (p == 1) {
      ds.array() -= along;
    } else {
      for (Index k = 0; k < s.size(); ++k) {
        const Scalar share = s(k) / norm;
        ds(k) = kernels::multiply_add(-along, p == 2 ? share : std::pow(share, p - 1), ds(k));
      }
    }
  }
}

/// The choice is constant; its weights are differentiated.
/// @param logits    (num_experts × n_tokens), as choice.route() had them
/// @param d_weight  ∂L/∂weight of each route
/// @param d_logits  (num_experts × n_tokens), added to
template <class Scalar, class Gradient>
void backward(const TopKChoice<Scalar>& choice, const ConstMatrixRef<Scalar>& logits, const Routing<Scalar>& routing,
              std::span<const std::type_identity_t<Scalar>> d_weight, MatrixRef<Scalar> d_logits, Gradient&,
              Workers& workers) {
  using Vector = Eigen::Matrix<Scalar, Eigen::Dynamic, 1>;
  const TopKOptions& options = choice.options();
  const Index top_k = options.top_k;
  workers.for_each_band(logits.cols(), 16, [&](Index first, Index last, Scratch& scratch) {
    Eigen::Map<Vector> all(scratch.array<Scalar>(logits.rows()), logits.rows());
    Eigen::Map<Vector> d_all(scratch.array<Scalar>(logits.rows()), logits.rows());
    Eigen::Map<Vector> s(scratch.array<Scalar>(top_k), top_k), d(scratch.array<Scalar>(top_k), top_k);
    for (Index t = first; t < last; ++t) {
      const auto route = std::size_t(t * top_k);
      const std::span<const Index> chosen(&routing.expert[route], std::size_t(top_k));
      score_logits(options.score, logits.col(t), all);
      for (Index k = 0; k < top_k; ++k) s(k) = all(chosen[std::size_t(k)]);
      d = Eigen::Map<const Vector>(&d_weight[route], top_k) * Scalar(options.scale);
      if (options.score == Score::softmax_of_chosen) softmax(s, s);
      if (options.renormalize) {
        renormalize_backward(s, Scalar(options.norm), Scalar(options.epsilon), Scalar(options.floor), d, d);
      }
      if (options.score == Score::softmax_of_chosen) softmax_backward(s, d);
      d_all.setZero();
      for (Index k = 0; k < top_k; ++k) d_all(chosen[std::size_t(k)]) = d(k);
      score_backward(options.score, logits.col(t), all, d_all);
      d_logits.col(t) += d_all;
    }
  });
}

/// The same for a choice that leaves its weights to a TopKChoice, and for one without logits.
template <class Choice, class Gradient, class Scalar = typename Choice::Scalar>
  requires requires(const Choice& choice) { choice.weigher(); }
void backward(const Choice& choice, const ConstMatrixRef<Scalar>& logits, const Routing<Scalar>& routing,
              std::span<const std::type_identity_t<Scalar>> d_weight, MatrixRef<Scalar> d_logits, Gradient& gradient,
              Workers& workers) {
  if (logits.rows() > 0) backward(choice.weigher(), logits, routing, d_weight, d_logits, gradient, workers);
}

}  // namespace moe::inline MOE_TARGET
