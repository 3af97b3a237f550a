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
  const bool at_floor = floor > 0 && norm + epsilon < floor;
  const Scalar divisor = at_floor ? floor : norm + epsilon;
  if (divisor == 0) {
    ds = dw;
  } else if (at_floor || (norm == 0 && (p != 1 || s.isZero(0)))) {
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

/// One worker's memory for going back through a choice, token after token.
template <class Scalar>
class TopKBackward {
 public:
  /// @param scratch  the worker's
  TopKBackward(const TopKChoice<Scalar>& choice, Scratch& scratch)
      : choice_(choice),
        all_(scratch.array<Scalar>(choice.num_experts()), choice.num_experts()),
        d_all_(scratch.array<Scalar>(choice.num_experts()), choice.num_experts()),
        s_(scratch.array<Scalar>(choice.top_k()), choice.top_k()),
        d_(scratch.array<Scalar>(choice.top_k()), choice.top_k()) {}

  /// @param logits    (num_experts) of the token
  /// @param chosen    its experts, top_k() of them
  /// @param d_weight  ∂L/∂weight of each
  /// @param d_logits  (num_experts), added to
  template <class Logits, class Gradient>
  void add(const Logits& logits, const Index* chosen, const Scalar* d_weight, Gradient&& d_logits) {
    const TopKOptions& options = choice_.options();
    score_logits(options.score, logits, all_);
    for (Index k = 0; k < s_.size(); ++k) s_(k) = choice_.weighed(chosen[k], all_(chosen[k]));
    d_ = Eigen::Map<const Column>(d_weight, d_.size()) * Scalar(options.scale);
    if (options.score == Score::softmax_of_chosen) softmax(s_, s_);
    if (options.renormalize) {
      renormalize_backward(s_, Scalar(options.norm), Scalar(options.epsilon), Scalar(options.floor), d_, d_);
    }
    if (options.score == Score::softmax_of_chosen) softmax_backward(s_, d_);
    d_all_.setZero();
    for (Index k = 0; k < d_.size(); ++k) d_all_(chosen[k]) = d_(k);
    score_backward(options.score, logits, all_, d_all_);
    d_logits += d_all_;
  }

 private:
  using Column = Eigen::Matrix<Scalar, Eigen::Dynamic, 1>;

  const TopKChoice<Scalar>& choice_;
  Eigen::Map<Column> all_, d_all_, s_, d_;
};

/// The choice is constant; its weights are differentiated.
/// @param logits    (num_experts × n_tokens), as choice.route() had them
/// @param d_weight  ∂L/∂weight of each route
/// @param d_logits  (num_experts × n_tokens), added to
template <class Scalar, class Gradient>
void backward(const TopKChoice<Scalar>& choice, const ConstMatrixRef<Scalar>& logits, const Routing<Scalar>& routing,
              std::span<const std::type_identity_t<Scalar>> d_weight, MatrixRef<Scalar> d_logits, Gradient&,
              Workers& workers) {
  workers.for_each_band(logits.cols(), 16, [&](Index first, Index last, Scratch& scratch) {
    TopKBackward<Scalar> back(choice, scratch);
    for (Index t = first; t < last; ++t) {
      const auto route = std::size_t(t * choice.top_k());
      back.add(logits.col(t), &routing.expert[route], &d_weight[route], d_logits.col(t));
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
