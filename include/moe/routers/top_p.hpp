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

struct TopPOptions {
  double top_p = 0.4;                                     // how much probability the chosen must have together
  Index max_experts = std::numeric_limits<Index>::max();  // even if they have not
  bool renormalize = false;                               // weights become p / Σp
};

/// For each token the smallest set of experts whose probabilities p = softmax(logits) add to top_p, each weighted by its
/// p; at least one expert, and no further one whose p is 0. Best first; of ties the lower index wins. A NaN ranks last
/// and leaves a token one expert, of weight NaN.
/// Huang et al. 2024, "Harder Tasks Need More Experts", arXiv:2403.07652.
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
    const Index most = std::min(options_.max_experts, logits.rows());
    route_varying(logits.cols(), most, routing, workers, [&](Scratch& scratch) {
      return [&, choice = Choice(options_, logits.rows(), scratch)](Index t, Index* expert, Scalar* weight) {
        return choice.choose(logits.col(t), most, expert, weight);
      };
    });
  }

 private:
  /// One worker's memory for choosing, token after token.
  class Choice {
   public:
    Choice(const TopPOptions& options, Index num_experts, Scratch& scratch)
        : options_(options),
          size_(num_experts),
          probability_(scratch.array<Scalar>(size_)),
          rank_(scratch.array<Scalar>(size_)),
          heap_(scratch.array<Index>(size_)) {}

    /// Takes experts from a heap, so that those which are not needed are never sorted.
    template <class Logits>
    Index choose(const Logits& logits, Index most, Index* expert, Scalar* weight) const {
      softmax(logits, Eigen::Map<Vector<Scalar>>(probability_, size_));
      // Logits rank as probabilities do, also where these have underflowed.
      for (Index e = 0; e < size_; ++e) rank_[e] = rank_of(Scalar(logits(e)));
      const auto worse = [this](Index a, Index b) { return ranks_before(rank_[b], b, rank_[a], a); };
      std::iota(heap_, heap_ + size_, Index(0));
      std::make_heap(heap_, heap_ + size_, worse);

      Scalar sum = 0;
      Index count = 0;
      do {
        std::pop_heap(heap_, heap_ + (size_ - count), worse);
        expert[count] = heap_[size_ - count - 1];
        weight[count] = probability_[expert[count]];
        sum += weight[count++];
      } while (count < most && sum < static_cast<Scalar>(options_.top_p) && probability_[heap_[0]] > 0);
      if (options_.renormalize) Eigen::Map<Vector<Scalar>>(weight, count) /= sum;
      return count;
    }

   private:
    const TopPOptions& options_;
    Index size_;
    Scalar *probability_, *rank_;
    Index* heap_;
  };

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
