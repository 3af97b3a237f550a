/// @file  The router whose selection bias balances the batch at hand.
#pragma once

#include <algorithm>
#include <functional>
#include <limits>
#include <type_traits>
#include <utility>

#include "moe/core/check.hpp"
#include "moe/core/routing.hpp"
#include "moe/core/scratch.hpp"
#include "moe/core/types.hpp"
#include "moe/kernels/scores.hpp"
#include "moe/routers/detail/best_k.hpp"
#include "moe/routers/detail/by_expert.hpp"
#include "moe/routers/linear_logits.hpp"
#include "moe/routers/logits_router.hpp"
#include "moe/routers/top_k.hpp"
#include "moe/runtime/workers.hpp"

namespace moe::inline MOE_TARGET {

namespace detail {

/// Finite, so that a bias can be kept from batch to batch whatever one of them held.
template <class Scalar>
Scalar finite(Scalar number) {
  return std::clamp(number, std::numeric_limits<Scalar>::lowest(), std::numeric_limits<Scalar>::max());
}

/// A number that `count` of them are above, and all others below: halfway between the count-th and the next largest.
/// Reorders them; none may be NaN, and count must be from 1 to size − 1.
template <class Scalar>
Scalar threshold(Scalar* numbers, Index size, Index count) {
  std::nth_element(numbers, numbers + count, numbers + size, std::greater<>());
  const Scalar last_above = *std::min_element(numbers, numbers + count), first_below = numbers[count];
  return finite(last_above) / 2 + finite(first_below) / 2;  // halves first: no overflow
}

}  // namespace detail

/// Improves β, such that choosing the top_k of s − β gives each expert close to n_tokens · top_k / num_experts tokens.
/// These β are the experts' prices in the assignment problem
///   max Σ x_te s_te  where  Σ_e x_te = top_k,  Σ_t x_te = n_tokens · top_k / num_experts,  0 ≤ x_te ≤ 1,
/// whose dual is minimised in turns by
///   α_t = the threshold between the top_k best of s_t − β and the others,
///   β_e = the threshold between the ⌈n_tokens · top_k / num_experts⌉ best of s_e − α and the others:
/// quantiles. Halfway between two neighbours, for at either of them the turns soon stand still.
///
/// No round makes the dual worse. A few balance well (one after each training step is a bias update without a loss);
/// an exact balance is not promised, and equal scores cannot be told apart. Tokens with a score that is not finite take
/// no part and are not counted. Where an expert has room for all that are left, β stays. A round takes O(n_tokens ·
/// num_experts) on average; no number depends on the workers.
///
/// LinearTopK routes with such a β if its selection_bias is −β.
///
/// @param scores  (num_experts × n_tokens): by which the router chooses
/// @param beta    (num_experts), finite: where to start from (0, or that of the last batch); overwritten
/// @throws std::invalid_argument unless 1 ≤ top_k ≤ num_experts, rounds ≥ 0, and beta fits and is finite.
template <class Scalar>
void balance_quantiles(const ConstMatrixRef<Scalar>& scores, Index top_k, Index rounds,
                       Eigen::Ref<Eigen::Matrix<std::type_identity_t<Scalar>, Eigen::Dynamic, 1>> beta,
                       Workers& workers) {
  const Index num_experts = scores.rows(), num_tokens = scores.cols();
  require_between(1, top_k, num_experts, "balance_quantiles: top_k");
  require_between(0, rounds, std::numeric_limits<Index>::max(), "balance_quantiles: rounds");
  require_equal(beta.size(), num_experts, "balance_quantiles: beta.size()");
  require(beta.allFinite(), "balance_quantiles: beta is not finite");

  Index members = 0;
  auto* const member = workers.shared().array<Index>(num_tokens);
  for (Index t = 0; t < num_tokens; ++t) {
    if (scores.col(t).allFinite()) member[members++] = t;
  }
  const Index load = (members * top_k + num_experts - 1) / num_experts;
  if (load >= members) return;
  auto by_token = aligned_columns<Scalar>(num_experts, members, workers.shared());
  for (Index i = 0; i < members; ++i) by_token.col(i) = scores.col(member[i]);
  const auto of_expert = by_expert(by_token, workers);
  auto alpha = workers.shared().matrix<Scalar>(members, 1);

  for (Index round = 0; round < rounds; ++round) {
    workers.for_each_band(members, items_a_task(num_experts), [&](Index first, Index last, Scratch& scratch) {
      auto margin = scratch.matrix<Scalar>(num_experts, 1);
      for (Index i = first; i < last; ++i) {
        margin = by_token.col(i) - beta;
        alpha(i) = detail::threshold(margin.data(), num_experts, top_k);
      }
    });
    workers.for_each_band(num_experts, items_a_task(members), [&](Index first, Index last, Scratch& scratch) {
      auto margin = scratch.matrix<Scalar>(members, 1);
      for (Index e = first; e < last; ++e) {
        margin = of_expert.col(e) - alpha;
        beta(e) = detail::threshold(margin.data(), members, load);
      }
    });
  }
}

/// What is chosen, and how long it is balanced.
struct QuantileOptions {
  TopKOptions choice = {};  // as of LinearTopK, with one group, and none always chosen
  Index rounds = 8;         // of balance_quantiles(), from β = 0: max load / mean load is then 1.0 to 1.3 where the
                            // scores' own would be 4 to 8 (tests/routers/balanced_test.cpp)
};

/// balance_quantiles() finds β for the scores s of this batch; then each token goes to the top_k experts of largest
/// s − β, weighted by s: top_k routes a token, side by side and best first. Ties go to the lower expert, a NaN ranks
/// last. Keeps no β: what a token gets depends on the tokens beside it.
template <class Scalar_>
class QuantileChoice {
 public:
  using Scalar = Scalar_;

  /// @throws std::invalid_argument unless 1 ≤ top_k ≤ num_experts, there is one group, and rounds ≥ 0.
  QuantileChoice(Index num_experts, const QuantileOptions& options)
      : options_(options), weigher_(num_experts, options.choice, {}, "QuantileBalanced") {
    require_equal(options.choice.num_groups, 1, "QuantileBalanced: num_groups");
    require_equal(options.choice.always_chosen, 0, "QuantileBalanced: always_chosen");
    require_between(0, options.rounds, std::numeric_limits<Index>::max(), "QuantileBalanced: rounds");
  }

  Index top_k() const { return weigher_.top_k(); }
  const QuantileOptions& options() const { return options_; }
  const TopKChoice<Scalar>& weigher() const { return weigher_; }

  /// @throws std::invalid_argument as that of TopKChoice.
  Index experts_for(Index num_logits) const { return weigher_.experts_for(num_logits); }

  void route(const ConstMatrixRef<Scalar>& logits, Routing<Scalar>& routing, Workers& workers) const {
    const Index num_experts = logits.rows();
    auto scores = aligned_columns<Scalar>(num_experts, logits.cols(), workers.shared());
    workers.for_each_band(logits.cols(), items_a_task(num_experts), [&](Index first, Index last, Scratch&) {
      for (Index t = first; t < last; ++t) score_logits(options_.choice.score, logits.col(t), scores.col(t));
    });
    auto beta = workers.shared().template matrix<Scalar>(num_experts, 1);
    beta.setZero();
    balance_quantiles<Scalar>(scores, top_k(), options_.rounds, beta.col(0), workers);
    const auto expert = best_experts<Scalar>(num_experts, logits.cols(), top_k(), workers,
                                             [&](Index e, Index t) { return scores(e, t) - beta(e); });
    weigher_.weigh(logits, routing, workers, [&](Index t) { return expert + t * top_k(); });
  }

 private:
  QuantileOptions options_;
  TopKChoice<Scalar> weigher_;
};

/// logits = W·x; then QuantileChoice.
template <class Scalar>
class QuantileBalanced : public LogitsRouter<LinearLogits<Scalar>, QuantileChoice<Scalar>> {
 public:
  /// @param weight  (num_experts × d_model): row e scores expert e
  /// @throws std::invalid_argument unless 1 ≤ top_k ≤ num_experts, there is one group, and rounds ≥ 0.
  QuantileBalanced(Weight<Scalar> weight, const QuantileOptions& options = {})
      : QuantileBalanced::LogitsRouter(LinearLogits<Scalar>(std::move(weight), {}, "QuantileBalanced"), std::in_place,
                                       options) {}
};

}  // namespace moe::inline MOE_TARGET
