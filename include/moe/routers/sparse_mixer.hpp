/// @file  The router of Phi-3.5-MoE and GRIN: two rounds, each a softmax over the experts near its best.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <utility>

#include "moe/core/check.hpp"
#include "moe/core/routing.hpp"
#include "moe/core/types.hpp"
#include "moe/kernels/scores.hpp"
#include "moe/routers/linear_logits.hpp"
#include "moe/routers/logits_router.hpp"
#include "moe/runtime/workers.hpp"

namespace moe::inline MOE_TARGET {

/// How many experts a token takes, and what is near enough to the largest logit to weigh.
struct SparseMixerOptions {
  Index top_k = 2;      // rounds
  double jitter = 0.1;  // half of the margin: checkpoints call it router_jitter_noise

  bool operator==(const SparseMixerOptions&) const = default;
};

/// Each round takes the largest logit m that is left and masks every expert with (m − l) / max(|l|, m) > 2·jitter; the
/// weight is the softmax of the unmasked ones, at the expert taken. A later round leaves out the experts already taken.
/// So the weights of a token do not sum to 1. Ties: the lower index wins.
///
/// This is the form for evaluation. A NaN logit is taken last, and weighs NaN where it takes part in a softmax.
/// Where nothing finite is left (−∞, or +∞ against +∞) a margin of 0 / 0 masks nobody; all −∞ is uniform.
///
/// Liu et al. 2024, "GRIN", arXiv:2409.12136; SparseMixer-v2.
template <class Scalar_>
class SparseMixerChoice {
 public:
  using Scalar = Scalar_;

  /// @throws std::invalid_argument unless jitter ≥ 0.
  explicit SparseMixerChoice(const SparseMixerOptions& options) : options_(options) {
    require(options.jitter >= 0, "SparseMixer: jitter is " + std::to_string(options.jitter) + ", expected at least 0");
  }

  Index top_k() const { return options_.top_k; }
  const SparseMixerOptions& options() const { return options_; }

  /// @throws std::invalid_argument unless 1 ≤ top_k ≤ num_logits.
  Index experts_for(Index num_logits) const {
    require_between(1, top_k(), num_logits, "SparseMixer: top_k");
    return num_logits;
  }

  void route(const ConstMatrixRef<Scalar>& logits, Routing<Scalar>& routing, Workers& workers) const {
    const Index num_experts = logits.rows();
    routing.resize(top_k() * logits.cols());
    workers.for_each_band(logits.cols(), tokens_a_task, [&](Index first, Index last, Scratch& scratch) {
      Eigen::Map<Vector<Scalar>> shares(scratch.matrix<Scalar>(num_experts, 1).data(), num_experts);
      bool* const taken = scratch.array<bool>(num_experts);
      for (Index t = first; t < last; ++t) {
        std::fill_n(taken, num_experts, false);
        for (Index k = 0; k < top_k(); ++k) {
          const Index e = best_of(logits.col(t), taken);
          const auto route = std::size_t(t * top_k() + k);
          routing.token[route] = t;
          routing.expert[route] = e;
          routing.weight[route] = shares(share_out(logits.col(t), taken, e, shares));
          taken[e] = true;
        }
      }
    });
  }

  /// The round in which `best` is taken, of those that are not taken yet.
  /// @param shares  (num_experts) written: for each of these, in order, its part of the softmax; 0 if it is masked
  /// @return the place of `best` among them
  template <class Logits>
  Index share_out(const Logits& logits, const bool* taken, Index best, Eigen::Map<Vector<Scalar>>& shares) const {
    const Scalar m = logits(best), margin = Scalar(2 * options_.jitter);
    Index count = 0, place = 0;
    for (Index e = 0; e < logits.size(); ++e) {
      if (taken[e]) continue;
      const bool masked = (m - logits(e)) / std::max(std::abs(logits(e)), m) > margin;
      if (e == best) place = count;
      shares(count++) = masked ? -std::numeric_limits<Scalar>::infinity() : logits(e);
    }
    softmax(shares.head(count), shares.head(count));
    return place;
  }

 private:
  static constexpr Index tokens_a_task = 16;

  /// The largest of those not taken; the first of equals; a NaN only where there is nothing else.
  template <class Logits>
  static Index best_of(const Logits& logits, const bool* taken) {
    Index best = -1;
    for (Index e = 0; e < logits.size(); ++e) {
      if (taken[e]) continue;
      if (best < 0 || logits(e) > logits(best) || (std::isnan(logits(best)) && !std::isnan(logits(e)))) best = e;
    }
    return best;
  }

  SparseMixerOptions options_;
};

/// logits = W·x; then SparseMixerChoice.
template <class Scalar>
class SparseMixer : public LogitsRouter<LinearLogits<Scalar>, SparseMixerChoice<Scalar>> {
 public:
  /// @param weight  (num_experts × d_model)
  /// @throws std::invalid_argument unless 1 ≤ top_k ≤ num_experts and jitter ≥ 0.
  explicit SparseMixer(Weight<Scalar> weight, const SparseMixerOptions& options = {})
      : SparseMixer::LogitsRouter(LinearLogits<Scalar>(std::move(weight), {}, "SparseMixer"),
                                  SparseMixerChoice<Scalar>(options)) {}
};

}  // namespace moe::inline MOE_TARGET
