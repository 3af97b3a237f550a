/// @file  The router that takes as many experts as it needs to be sure.
#pragma once

#include <algorithm>
#include <limits>
#include <numeric>
#include <string>
#include <utility>

#include "moe/core/check.hpp"
#include "moe/core/routing.hpp"
#include "moe/core/types.hpp"
#include "moe/kernels/scores.hpp"
#include "moe/routers/detail/best_k.hpp"
#include "moe/routers/detail/varying_routes.hpp"
#include "moe/routers/linear_logits.hpp"
#include "moe/routers/logits_router.hpp"
#include "moe/runtime/workers.hpp"

namespace moe::inline MOE_TARGET {

/// When there are enough experts.
struct TopPOptions {
  double top_p = 0.4;                                     // how much probability the chosen must have together
  Index max_experts = std::numeric_limits<Index>::max();  // even if they have not
  bool renormalize = false;                               // weights become p / Σp
};

/// For each token the smallest set of experts whose probabilities p = softmax(logits) add to top_p, each weighted by
/// its p; at least one expert, and no further one whose p is 0. Best first; of ties the lower index wins. A NaN ranks
/// last and leaves a token one expert, of weight NaN. Huang et al. 2024, "Harder Tasks Need More Experts",
/// arXiv:2403.07652.
template <class Scalar_>
class TopPChoice {
 public:
  using Scalar = Scalar_;

  /// @throws std::invalid_argument unless 0 < top_p ≤ 1 and max_experts ≥ 1.
  explicit TopPChoice(const TopPOptions& options) : options_(options) {
    require(options.top_p > 0 && options.top_p <= 1,
            "TopP: top_p is " + std::to_string(options.top_p) + ", expected more than 0, up to 1");
    require(options.max_experts >= 1,
            "TopP: max_experts is " + std::to_string(options.max_experts) + ", expected 1 or more");
  }

  const TopPOptions& options() const { return options_; }

  void route(const ConstMatrixRef<Scalar>& logits, Routing<Scalar>& routing, Workers& workers) const {
    const Index n = logits.rows(), most = std::min(options_.max_experts, n);
    route_varying(logits.cols(), most, routing, workers, [&](Scratch& scratch) {
      auto *const p = scratch.array<Scalar>(n), *const rank = scratch.array<Scalar>(n);
      auto* const heap = scratch.array<Index>(n);
      return [=, this, &logits](Index t, Index* expert, Scalar* weight) {
        softmax(logits.col(t), Eigen::Map<Vector<Scalar>>(p, n));
        for (Index e = 0; e < n; ++e) rank[e] = rank_of(logits(e, t));  // as p does, also where that has underflowed
        const auto worse = [rank](Index a, Index b) { return ranks_before(rank[b], b, rank[a], a); };
        std::iota(heap, heap + n, Index(0));
        std::make_heap(heap, heap + n, worse);  // so that experts which are not needed are never sorted

        Scalar sum = 0;
        Index count = 0;
        do {
          std::pop_heap(heap, heap + (n - count), worse);
          expert[count] = heap[n - count - 1];
          weight[count] = p[expert[count]];
          sum += weight[count++];
        } while (count < most && sum < static_cast<Scalar>(options_.top_p) && p[heap[0]] > 0);
        if (options_.renormalize) Eigen::Map<Vector<Scalar>>(weight, count) /= sum;
        return count;
      };
    });
  }

 private:
  TopPOptions options_;
};

/// logits = W·x + bias; then TopPChoice.
template <class Scalar>
class TopP : public LogitsRouter<LinearLogits<Scalar>, TopPChoice<Scalar>> {
 public:
  /// @param weight  (num_experts × d_model): row e scores expert e
  /// @param bias    (num_experts) added to the logits, or empty
  /// @throws std::invalid_argument unless the sizes fit, 0 < top_p ≤ 1 and max_experts ≥ 1.
  TopP(Weight<Scalar> weight, const TopPOptions& options, Vector<Scalar> bias = {})
      : TopP::LogitsRouter(LinearLogits<Scalar>(std::move(weight), std::move(bias), "TopP"),
                           TopPChoice<Scalar>(options)) {}
};

}  // namespace moe::inline MOE_TARGET
