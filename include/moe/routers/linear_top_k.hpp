/// @file  The router of most published models: a linear layer whose best scores choose the experts.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <utility>

#include "moe/check.hpp"
#include "moe/kernels/matmul.hpp"
#include "moe/routers/scores.hpp"
#include "moe/routers/select_top_k.hpp"
#include "moe/routing.hpp"
#include "moe/types.hpp"
#include "moe/workers.hpp"

namespace moe {

/// How logits become scores s.
enum class Score {
  softmax,            ///< over all experts
  softmax_of_chosen,  ///< the largest logits choose; softmax over those alone
  sigmoid,            ///< each expert by itself
};

/// How a group of experts is ranked, by the selection scores in it.
enum class GroupScore { max, top2_sum };

/// The defaults are OLMoE's. Others differ in a few words:
///   Mixtral, Qwen3   {.top_k = 8, .renormalize = true}
///   Granite, JetMoE  {.top_k = 2, .score = Score::softmax_of_chosen}
///   DeepSeek-V2      {.top_k = 6, .scale = 16, .num_groups = 8, .kept_groups = 3}
///   DeepSeek-V3      {.top_k = 8, .score = Score::sigmoid, .renormalize = true, .epsilon = 1e-20, .scale = 2.5,
///                     .num_groups = 8, .kept_groups = 4, .group_score = GroupScore::top2_sum}, and a selection bias
///   Llama 4          {.score = Score::sigmoid, .weight_on = WeightOn::input}
struct TopKOptions {
  Index top_k = 1;
  Score score = Score::softmax;
  bool renormalize = false;  // weights become w / (Σw + epsilon); 0 where that would be 0 / 0
  double epsilon = 0;
  double scale = 1;       // multiplies the weights, last
  Index num_groups = 1;   // consecutive experts of equal number form a group …
  Index kept_groups = 1;  // … and only the best groups may send tokens
  GroupScore group_score = GroupScore::max;
  WeightOn weight_on = WeightOn::output;
};

/// Token choice: for each token, the top_k experts of largest selection score s + selection_bias among the kept groups,
/// each weighted by s (never by the biased score). Ties: the lower index wins.
///
/// logits = W·x + bias, in Scalar. Routes of a token stand side by side, best first.
/// A NaN logit ranks last, so that indices are always valid; the token's weights, and so its output, become NaN where
/// the formula says so: visible, in that token alone. +∞ takes all of a softmax; −∞ nothing; all −∞ is uniform.
///
/// Shazeer et al. 2017, arXiv:1701.06538; groups: DeepSeek-V2, arXiv:2405.04434; bias: DeepSeek-V3, arXiv:2412.19437.
template <class Scalar_>
class LinearTopK {
 public:
  using Scalar = Scalar_;
  using Vector = Eigen::Matrix<Scalar, Eigen::Dynamic, 1>;

  /// @param weight          (num_experts × d_model): row e scores expert e
  /// @param bias            (num_experts) added to the logits, or empty
  /// @param selection_bias  (num_experts) added to the scores when choosing, not when weighting; or empty
  /// @throws std::invalid_argument unless the sizes fit, num_groups divides num_experts, and the kept groups hold
  /// top_k.
  LinearTopK(Weight<Scalar> weight, const TopKOptions& options, Vector bias = {}, Vector selection_bias = {})
      : weight_(std::move(weight)),
        bias_(std::move(bias)),
        selection_bias_(std::move(selection_bias)),
        options_(options) {
    const Index experts = num_experts();
    require(experts >= 1, "LinearTopK: needs at least one expert");
    require_between(1, options.num_groups, experts, "LinearTopK: num_groups");
    require(experts % options.num_groups == 0, "LinearTopK: num_groups " + std::to_string(options.num_groups) +
                                                   " does not divide num_experts " + std::to_string(experts));
    require_between(1, options.kept_groups, options.num_groups, "LinearTopK: kept_groups");
    require_between(1, options.top_k, options.kept_groups * group_size(), "LinearTopK: top_k");
    if (bias_.size() > 0) require_equal(bias_.size(), experts, "LinearTopK: bias.size()");
    if (selection_bias_.size() > 0) require_equal(selection_bias_.size(), experts, "LinearTopK: selection_bias.size()");
  }

  Index d_model() const { return weight_.cols(); }
  Index num_experts() const { return weight_.rows(); }
  Index top_k() const { return options_.top_k; }
  const TopKOptions& options() const { return options_; }
  const Weight<Scalar>& weight() const { return weight_; }
  const Vector& bias() const { return bias_; }
  const Vector& selection_bias() const { return selection_bias_; }

  void route(const ConstMatrixRef<Scalar>& x, Routing<Scalar>& routing, Workers& workers) const {
    routing.logits.resize(std::size_t(num_experts() * x.cols()));
    Eigen::Map<Matrix<Scalar>> logits(routing.logits.data(), num_experts(), x.cols());
    kernels::matmul<Scalar, Scalar>(map_of(weight_), x, logits, workers);

    routing.resize(top_k() * x.cols());
    routing.weight_on = options_.weight_on;
    workers.for_each_band(x.cols(), tokens_a_task, [&](Index first, Index last, Scratch& scratch) {
      Choice choice(*this, scratch);
      for (Index t = first; t < last; ++t) {
        if (bias_.size() > 0) logits.col(t) += bias_;
        const auto route = std::size_t(t * top_k());
        choice.of(logits.col(t), &routing.expert[route], &routing.weight[route]);
        std::fill_n(&routing.token[route], top_k(), t);
      }
    });
  }

 private:
  static constexpr Index tokens_a_task = 16;

  Index group_size() const { return num_experts() / options_.num_groups; }

  /// One worker's memory for choosing, token after token.
  class Choice {
   public:
    Choice(const LinearTopK& router, Scratch& scratch)
        : router_(router),
          score_(scratch.matrix<Scalar>(router.num_experts(), 1).data(), router.num_experts()),
          rank_(scratch.matrix<Scalar>(router.num_experts(), 1).data(), router.num_experts()),
          weight_(scratch.matrix<Scalar>(router.top_k(), 1).data(), router.top_k()),
          group_score_(scratch.array<Scalar>(router.options_.num_groups)),
          group_(scratch.array<Index>(router.options_.num_groups)),
          best_(scratch, router.top_k()),
          best_groups_(scratch, router.options_.kept_groups) {}

    template <class Logits>
    void of(const Logits& logits, Index* expert, Scalar* weight) {
      const TopKOptions& options = router_.options_;
      if (options.score == Score::softmax) softmax(logits, score_);
      if (options.score == Score::sigmoid) sigmoid(logits, score_);
      if (options.score == Score::softmax_of_chosen) score_ = logits;
      rank(logits);
      choose(expert);
      for (Index k = 0; k < options.top_k; ++k) weight_(k) = score_(expert[k]);
      if (options.score == Score::softmax_of_chosen) softmax(weight_, weight_);
      if (options.renormalize) renormalize(weight_, Scalar(options.epsilon));
      Eigen::Map<Vector>(weight, options.top_k) = weight_ * Scalar(options.scale);
    }

   private:
    /// Scores rise with logits, so logits rank alike where nothing is added to the scores; and they still differ where
    /// a sigmoid has saturated to 1 or a softmax underflowed to 0.
    template <class Logits>
    void rank(const Logits& logits) {
      const bool biased = router_.selection_bias_.size() > 0, summed = router_.options_.group_score != GroupScore::max;
      if (!biased && !summed) {
        rank_ = logits;
      } else {
        rank_ = score_;
        if (biased) rank_ += router_.selection_bias_;
      }
    }

    /// The top_k best of the kept groups. Experts of other groups are never looked at, so nothing has to mask them.
    void choose(Index* expert) {
      const Index size = router_.group_size(), kept = router_.options_.kept_groups,
                  groups = router_.options_.num_groups;
      for (Index g = 0; g < groups; ++g) group_[g] = g;
      if (kept < groups) {
        for (Index g = 0; g < groups; ++g) group_score_[g] = score_of_group(rank_.segment(g * size, size));
        best_groups_.clear();
        for (Index g = 0; g < groups; ++g) best_groups_.offer(g, group_score_[g]);
        std::copy_n(best_groups_.items(), kept, group_);
        std::sort(group_, group_ + kept);  // so that ties go to the lower expert
      }
      best_.clear();
      for (Index g = 0; g < kept; ++g) {
        for (Index e = group_[g] * size; e < (group_[g] + 1) * size; ++e) best_.offer(e, rank_(e));
      }
      std::copy_n(best_.items(), router_.top_k(), expert);
    }

    template <class Ranks>
    Scalar score_of_group(const Ranks& ranks) const {
      constexpr Scalar lowest = -std::numeric_limits<Scalar>::infinity();
      Scalar first = lowest, second = lowest;
      for (Index e = 0; e < ranks.size(); ++e) {
        const Scalar rank = ranks(e);
        if (rank > first)
          second = std::exchange(first, rank);
        else if (rank > second)
          second = rank;
      }
      return router_.options_.group_score == GroupScore::max || ranks.size() == 1 ? first : first + second;
    }

    const LinearTopK& router_;
    Eigen::Map<Vector> score_, rank_,
        weight_;  // aligned alike for each token: Eigen sums in an order that depends on it
    Scalar* group_score_;
    Index* group_;
    TopK<Scalar> best_, best_groups_;
  };

  Weight<Scalar> weight_;
  Vector bias_, selection_bias_;
  TopKOptions options_;
};

}  // namespace moe
