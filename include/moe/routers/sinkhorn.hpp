/// @file  The router whose choice is balanced by Sinkhorn iterations.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <string>
#include <utility>

#include "moe/core/check.hpp"
#include "moe/core/routing.hpp"
#include "moe/core/types.hpp"
#include "moe/kernels/scores.hpp"
#include "moe/kernels/vectors.hpp"
#include "moe/routers/detail/best_k.hpp"
#include "moe/routers/detail/by_expert.hpp"
#include "moe/routers/linear_logits.hpp"
#include "moe/routers/logits_router.hpp"
#include "moe/routers/top_k.hpp"
#include "moe/runtime/workers.hpp"

namespace moe::inline MOE_TARGET {

/// When sinkhorn() ends.
struct SinkhornIteration {
  double tolerance = 1e-4;     // ends when the mean |change| of an expert's factor is at most this, …
  Index max_iterations = 100;  // … or after so many rounds
};

/// Scales the rows and columns of K = exp(logits) such that each token weighs 1/n_tokens and each expert
/// 1/num_experts: from d₀ = d₁ = 1 repeats
///   d₀_t = 1/n_tokens / (Σ_e K_te d₁_e + 1e-8),  d₁_e = 1/num_experts / (Σ_t d₀_t K_te + 1e-8),
/// and returns balanced_te = d₀_t K_te d₁_e. Sinkhorn & Knopp 1967; Clark et al. 2022, "Unified Scaling Laws for
/// Routed Language Models", arXiv:2202.01169, §3.1; so computed by Megatron-LM.
///
/// Here K = exp(logit − the token's largest logit), which cannot overflow and leaves balanced as it is: a token's
/// factor cancels in d₀_t. (Only beside the 1e-8 it does not, where the largest logit is far from 0.) Infinite logits
/// are limits as in softmax(). A token with a NaN takes no part and is not counted: its column becomes NaN, the others
/// what they are without it. Each round takes O(n_tokens · num_experts); no number depends on the workers.
///
/// @param logits    (num_experts × n_tokens)
/// @param balanced  (num_experts × n_tokens), must not overlap logits
/// @return the number of rounds
template <class Scalar>
Index sinkhorn(const ConstMatrixRef<Scalar>& logits, MatrixRef<Scalar> balanced, const SinkhornIteration& iteration,
               Workers& workers) {
  using Array = Eigen::Map<Eigen::Array<Scalar, Eigen::Dynamic, 1>, Eigen::Aligned64>;
  constexpr Scalar epsilon = Scalar(1e-8);
  constexpr auto line = Index(Scratch::alignment / sizeof(Scalar));
  const Index num_experts = logits.rows(), num_tokens = logits.cols();
  const Index tokens_a_task = items_a_task(num_experts), experts_a_task = line * items_a_task(line * num_tokens);
  Array of_token(workers.shared().array<Scalar>(num_tokens), num_tokens);
  Array of_expert(workers.shared().array<Scalar>(num_experts), num_experts);
  Array before(workers.shared().array<Scalar>(num_experts), num_experts);
  auto kernel = aligned_columns<Scalar>(num_experts, num_tokens, workers.shared());
  auto* const member = workers.shared().array<bool>(num_tokens);

  workers.for_each_band(num_tokens, tokens_a_task, [&](Index first, Index last, Scratch&) {
    for (Index t = first; t < last; ++t) {
      exponentials(logits.col(t), kernel.col(t));
      member[t] = !std::isnan(kernel(0, t));
    }
  });
  const auto members = std::count(member, member + num_tokens, true);
  const Scalar share_of_token = Scalar(1) / Scalar(std::max<Index>(1, members));
  const Scalar share_of_expert = Scalar(1) / Scalar(num_experts);

  of_expert.setOnes();
  Index rounds = 0;
  for (bool done = members == 0; !done && rounds < iteration.max_iterations; ++rounds) {
    before = of_expert;
    workers.for_each_band(num_tokens, tokens_a_task, [&](Index first, Index last, Scratch&) {
      for (Index t = first; t < last; ++t) {
        if (member[t]) of_token[t] = share_of_token / (kernels::dot(kernel.col(t), of_expert) + epsilon);
      }
    });
    workers.for_each_band(num_experts, experts_a_task, [&](Index first, Index last, Scratch&) {
      auto sum = of_expert.segment(first, last - first);
      sum.setZero();
      for (Index t = 0; t < num_tokens; ++t) {
        if (member[t]) kernels::add_scaled(of_token[t], kernel.col(t).segment(first, last - first), sum);
      }
      sum = share_of_expert / (sum + epsilon);
    });
    done = double((of_expert - before).abs().mean()) <= iteration.tolerance;
  }

  workers.for_each_band(num_tokens, tokens_a_task, [&](Index first, Index last, Scratch&) {
    for (Index t = first; t < last; ++t) {
      if (member[t]) {
        balanced.col(t) = of_token[t] * kernel.col(t).array() * of_expert;
      } else {
        balanced.col(t).setConstant(std::numeric_limits<Scalar>::quiet_NaN());
      }
    }
  });
  return rounds;
}

/// What is chosen, and of what.
struct SinkhornOptions {
  Index top_k = 1;
  std::optional<Score> score = {};  // of the weights; left open, Megatron's: sigmoid for one expert, softmax for more
  bool balance = true;              // false: the largest logits choose, as is done when the model is used
  SinkhornIteration iteration = {};
};

/// sinkhorn() balances the logits over the batch; then each token goes to its top_k experts of the balanced matrix,
/// weighted by the scores of the logits, which know nothing of the balance. S-BASE: Clark et al. 2022,
/// arXiv:2202.01169; Megatron-LM's "sinkhorn". top_k routes a token, side by side and best first; ties go to the lower
/// expert. A token with a NaN logit takes no part in the balance and is routed by its logits alone.
template <class Scalar_>
class SinkhornChoice {
 public:
  using Scalar = Scalar_;

  /// @throws std::invalid_argument unless 1 ≤ top_k ≤ num_experts, tolerance ≥ 0 and max_iterations ≥ 1.
  SinkhornChoice(Index num_experts, const SinkhornOptions& options)
      : options_(options), weigher_(num_experts, weights_of(options), {}, "Sinkhorn") {
    const auto& [tolerance, max_iterations] = options.iteration;
    require(tolerance >= 0, "Sinkhorn: tolerance is " + std::to_string(tolerance) + ", expected 0 or more");
    require_between(1, max_iterations, std::numeric_limits<Index>::max(), "Sinkhorn: max_iterations");
  }

  Index top_k() const { return options_.top_k; }
  const SinkhornOptions& options() const { return options_; }
  const TopKChoice<Scalar>& weigher() const { return weigher_; }  // with the score that was left open

  /// @throws std::invalid_argument as that of TopKChoice.
  Index experts_for(Index num_logits) const { return weigher_.experts_for(num_logits); }

  void route(const ConstMatrixRef<Scalar>& logits, Routing<Scalar>& routing, Workers& workers) const {
    if (!options_.balance) return weigher_.route(logits, routing, workers);
    auto balanced = aligned_columns<Scalar>(logits.rows(), logits.cols(), workers.shared());
    sinkhorn<Scalar>(logits, balanced, options_.iteration, workers);
    const auto expert = best_experts<Scalar>(logits.rows(), logits.cols(), top_k(), workers, [&](Index e, Index t) {
      return std::isnan(balanced(0, t)) ? logits(e, t) : balanced(e, t);
    });
    weigher_.weigh(logits, routing, workers, [&](Index t) { return expert + t * top_k(); });
  }

 private:
  static TopKOptions weights_of(const SinkhornOptions& options) {
    return {.top_k = options.top_k,
            .score = options.score.value_or(options.top_k == 1 ? Score::sigmoid : Score::softmax)};
  }

  SinkhornOptions options_;
  TopKChoice<Scalar> weigher_;
};

/// logits = W·x; then SinkhornChoice.
template <class Scalar>
class Sinkhorn : public LogitsRouter<LinearLogits<Scalar>, SinkhornChoice<Scalar>> {
 public:
  /// @param weight  (num_experts × d_model): row e scores expert e
  /// @throws std::invalid_argument unless 1 ≤ top_k ≤ num_experts, tolerance ≥ 0 and max_iterations ≥ 1.
  Sinkhorn(Weight<Scalar> weight, const SinkhornOptions& options = {})
      : Sinkhorn::LogitsRouter(LinearLogits<Scalar>(std::move(weight), {}, "Sinkhorn"), std::in_place, options) {}
};

}  // namespace moe::inline MOE_TARGET
