/// @file  The router that takes as many experts as it needs to be sure.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <string>
#include <utility>

#include "moe/core/check.hpp"
#include "moe/core/routing.hpp"
#include "moe/core/types.hpp"
#include "moe/kernels/scores.hpp"
#include "moe/routers/detail/logits.hpp"
#include "moe/routers/detail/varying_routes.hpp"
#include "moe/runtime/workers.hpp"

namespace moe::inline MOE_TARGET {

struct TopPOptions {
  double top_p = 0.4;                                     // how much probability the chosen must have together
  Index max_experts = std::numeric_limits<Index>::max();  // even if they have not
  bool renormalize = false;                               // weights become p / Σp
};

/// For each token the smallest set of experts whose probabilities p = softmax(W·x + bias) add to top_p, each weighted
/// by its p; at least one expert, and no further one whose p is 0. Best first; of ties the lower index wins. A NaN
/// ranks last and leaves a token one expert, of weight NaN.
/// Huang et al. 2024, "Harder Tasks Need More Experts", arXiv:2403.07652.
template <class Scalar_>
class TopP {
 public:
  using Scalar = Scalar_;
  using Vector = Eigen::Matrix<Scalar, Eigen::Dynamic, 1>;

  /// @param weight  (num_experts × d_model): row e scores expert e
  /// @param bias    (num_experts) added to the logits, or empty
  /// @throws std::invalid_argument unless the sizes fit, 0 < top_p ≤ 1 and max_experts ≥ 1.
  TopP(Weight<Scalar> weight, const TopPOptions& options, Vector bias = {})
      : weight_(std::move(weight)), bias_(std::move(bias)), options_(options) {
    require(num_experts() >= 1, "TopP: needs at least one expert");
    require(options.top_p > 0 && options.top_p <= 1,
            "TopP: top_p is " + std::to_string(options.top_p) + ", expected more than 0, up to 1");
    require(options.max_experts >= 1,
            "TopP: max_experts is " + std::to_string(options.max_experts) + ", expected 1 or more");
    if (bias_.size() > 0) require_equal(bias_.size(), num_experts(), "TopP: bias.size()");
  }

  Index d_model() const { return weight_.cols(); }
  Index num_experts() const { return weight_.rows(); }
  const TopPOptions& options() const { return options_; }
  const Weight<Scalar>& weight() const { return weight_; }
  const Vector& bias() const { return bias_; }

  /// To write.
  Eigen::Map<Weight<Scalar>> weight() { return {weight_.data(), weight_.rows(), weight_.cols()}; }
  Eigen::Map<Vector> bias() { return {bias_.data(), bias_.size()}; }

  void route(const ConstMatrixRef<Scalar>& x, Routing<Scalar>& routing, Workers& workers) const {
    const auto logits = linear_logits(weight_, bias_, x, routing, workers);
    const Index most = std::min(options_.max_experts, num_experts());
    route_varying(x.cols(), most, routing, workers, [&](Scratch& scratch) {
      return [&, choice = Choice(*this, scratch)](Index t, Index* expert, Scalar* weight) {
        return choice.choose(logits.col(t), most, expert, weight);
      };
    });
  }

  template <class Visit>
  void visit_parameters(Visit& visit) {
    visit("weight", weight_);
    visit("bias", bias_);
  }

 private:
  /// One worker's memory for choosing, token after token.
  class Choice {
   public:
    Choice(const TopP& rule, Scratch& scratch)
        : options_(rule.options_),
          size_(rule.num_experts()),
          probability_(scratch.array<Scalar>(size_)),
          rank_(scratch.array<Scalar>(size_)),
          heap_(scratch.array<Index>(size_)) {}

    /// Takes experts from a heap, so that those which are not needed are never sorted.
    template <class Logits>
    Index choose(const Logits& logits, Index most, Index* expert, Scalar* weight) const {
      softmax(logits, Eigen::Map<Vector>(probability_, size_));
      // Logits rank as probabilities do, also where these have underflowed.
      for (Index e = 0; e < size_; ++e) {
        rank_[e] = std::isnan(logits(e)) ? -std::numeric_limits<Scalar>::infinity() : logits(e);
      }
      const auto worse = [this](Index a, Index b) { return rank_[a] != rank_[b] ? rank_[a] < rank_[b] : a > b; };
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
      if (options_.renormalize) Eigen::Map<Vector>(weight, count) /= sum;
      return count;
    }

   private:
    const TopPOptions& options_;
    Index size_;
    Scalar *probability_, *rank_;
    Index* heap_;
  };

  Weight<Scalar> weight_;
  Vector bias_;
  TopPOptions options_;
};

}  // namespace moe::inline MOE_TARGET
