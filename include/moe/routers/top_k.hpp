/// @file  From logits to the top_k routes of each token.
#pragma once

#include <algorithm>
#include <cmath>
#include <numeric>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "moe/core/check.hpp"
#include "moe/core/routing.hpp"
#include "moe/core/types.hpp"
#include "moe/kernels/scores.hpp"
#include "moe/routers/detail/best_k.hpp"
#include "moe/runtime/workers.hpp"

namespace moe::inline MOE_TARGET {

/// The defaults are OLMoE's. Others differ in a few words:
///   Mixtral, Qwen3   {.top_k = 8, .renormalize = true}
///   Granite, gpt-oss {.top_k = 4, .score = Score::softmax_of_chosen}
///   DBRX             {.top_k = 4, .renormalize = true, .norm = 1}
///   DeepSeek-V2      {.top_k = 6, .scale = 16, .num_groups = 8, .kept_groups = 3}
///   DeepSeek-V3      {.top_k = 8, .score = Score::sigmoid, .renormalize = true, .epsilon = 1e-20, .scale = 2.5,
///                     .num_groups = 8, .kept_groups = 4, .group_top = 2}, and a selection bias
///   DeepSeek-V4      {.top_k = 6, .score = Score::sqrt_softplus, .renormalize = true, .epsilon = 1e-20, .scale = 1.5},
///                    and a selection bias
///   Llama 4          {.score = Score::sigmoid, .weight_on = WeightOn::input}
struct TopKOptions {
  Index top_k = 1;
  Score score = Score::softmax;
  bool renormalize = false;  // weights become w / max(‖w‖ + epsilon, floor); 0 where that would be 0 / 0
  double norm = 1;           // which: ‖w‖ = (Σ wᵖ)^(1/p)
  double epsilon = 0;
  double floor = 0;
  double scale = 1;       // multiplies the weights, last
  Index num_groups = 1;   // consecutive experts of equal number form a group …
  Index kept_groups = 1;  // … and only the best groups may send tokens:
  Index group_top = 1;    // those whose so many best experts have the largest sum of selection scores
  WeightOn weight_on = WeightOn::output;
};

/// Token choice: for each token, the top_k experts of largest selection score s + selection_bias among the kept groups,
/// each weighted by s (never by the biased score). Ties: the lower index wins.
///
/// A NaN logit ranks last, so that indices are always valid; the token's weights, and so its output, become NaN where
/// the formula says so: visible, in that token alone. +∞ takes all of a softmax; −∞ nothing; all −∞ is uniform.
///
/// Shazeer et al. 2017, arXiv:1701.06538; groups: DeepSeek-V2, arXiv:2405.04434; bias: DeepSeek-V3, arXiv:2412.19437.
template <class Scalar_>
class TopKChoice {
 public:
  using Scalar = Scalar_;
  using Vector = Eigen::Matrix<Scalar, Eigen::Dynamic, 1>;

  /// @param selection_bias  (num_experts) added to the scores when choosing, not when weighting; or empty
  /// @param who             what errors begin with
  /// @throws std::invalid_argument unless the sizes fit, num_groups divides num_experts, and the kept groups hold
  /// top_k.
  TopKChoice(Index num_experts, const TopKOptions& options, Vector selection_bias = {},
             std::string_view who = "TopKChoice")
      : num_experts_(num_experts), options_(options), selection_bias_(std::move(selection_bias)) {
    const std::string name(who);
    require(num_experts >= 1, name + ": needs at least one expert");
    require_between(1, options.num_groups, num_experts, name + ": num_groups");
    require(num_experts % options.num_groups == 0, name + ": num_groups " + std::to_string(options.num_groups) +
                                                       " does not divide num_experts " + std::to_string(num_experts));
    require_between(1, options.kept_groups, options.num_groups, name + ": kept_groups");
    require_between(1, options.group_top, group_size(), name + ": group_top");
    require_between(1, options.top_k, options.kept_groups * group_size(), name + ": top_k");
    require(options.norm > 0, name + ": norm is " + std::to_string(options.norm) + ", expected more than 0");
    if (selection_bias_.size() > 0) {
      require_equal(selection_bias_.size(), num_experts, name + ": selection_bias.size()");
    }
  }

  Index num_experts() const { return num_experts_; }
  Index top_k() const { return options_.top_k; }
  const TopKOptions& options() const { return options_; }
  const Vector& selection_bias() const { return selection_bias_; }
  auto selection_bias() { return to_write(selection_bias_); }
  const TopKChoice& weigher() const { return *this; }  // as of any choice whose weights are those of one of these

  /// @throws std::invalid_argument unless they are as many as it has experts.
  Index experts_for(Index num_logits) const {
    require_equal(num_logits, num_experts_, "LogitsRouter: logits.num_experts(), against that of the choice,");
    return num_experts_;
  }

  /// Writes top_k routes for each token, side by side, best first.
  /// @param logits  (num_experts × n_tokens)
  void route(const ConstMatrixRef<Scalar>& logits, Routing<Scalar>& routing, Workers& workers) const {
    for_each_token(logits, routing, workers, [&](Index t, Choice& choice, Index* expert) {
      choice.read(logits.col(t));
      choice.choose(logits.col(t), expert);
    });
  }

  /// The same for experts that are chosen already: expert_of(t) points to the top_k experts of token t.
  template <class ExpertOf>
  void weigh(const ConstMatrixRef<Scalar>& logits, Routing<Scalar>& routing, Workers& workers,
             const ExpertOf& expert_of) const {
    for_each_token(logits, routing, workers, [&](Index t, Choice& choice, Index* expert) {
      choice.read(logits.col(t));
      std::copy_n(expert_of(t), top_k(), expert);
    });
  }

 private:
  Index group_size() const { return num_experts_ / options_.num_groups; }
  bool chooses_groups() const { return options_.kept_groups < options_.num_groups; }

 public:
  /// One worker's memory for choosing, token after token: read() a token's logits first.
  class Choice {
   public:
    Choice(const TopKChoice& rule, Scratch& scratch)
        : rule_(rule),
          score_(scratch.array<Scalar>(rule.num_experts()), rule.num_experts()),
          rank_of_best_(scratch.array<Scalar>(rule.top_k())) {
      if (rule.selection_bias_.size() > 0) biased_ = scratch.array<Scalar>(rule.num_experts());
      if (rule.chooses_groups()) {
        group_ = scratch.array<Index>(rule.options_.kept_groups);
        best_groups_.emplace(scratch, rule.options_.kept_groups);
        best_in_group_.emplace(scratch, rule.options_.group_top);
      }
    }

    template <class Logits>
    void read(const Logits& logits) {
      score_logits(rule_.options_.score, vector_at(logits.data(), score_.size()), score_);
    }

    /// The top_k best of the kept groups. Experts of other groups are never looked at, so nothing has to mask them.
    template <class Logits>
    void choose(const Logits& logits, Index* expert) {
      const Scalar* const rank = ranks(logits.data());
      BestK<Scalar> best(rule_.top_k(), expert, rank_of_best_);
      const auto offer = [&](Index first, Index end) {
        for (Index e = first; e < end; ++e) best.offer(e, rank[e]);
      };
      if (!rule_.chooses_groups()) return offer(0, rule_.num_experts());
      choose_groups(rank);
      for (Index g = 0; g < rule_.options_.kept_groups; ++g) {
        offer(group_[g] * rule_.group_size(), (group_[g] + 1) * rule_.group_size());
      }
    }

    /// The weights of top_k experts.
    void weigh(const Index* expert, Scalar* weight) {
      const TopKOptions& options = rule_.options_;
      Eigen::Map<Vector> weights(weight, options.top_k);
      for (Index k = 0; k < options.top_k; ++k) weights(k) = score_(expert[k]);
      if (options.score == Score::softmax_of_chosen) softmax(vector_at(weight, options.top_k), weights);
      if (options.renormalize) {
        renormalize(weights, Scalar(options.norm), Scalar(options.epsilon), Scalar(options.floor));
      }
      for (Index k = 0; k < options.top_k; ++k) weights(k) *= Scalar(options.scale);
    }

   private:
    static Eigen::Map<const Vector> vector_at(const Scalar* numbers, Index size) { return {numbers, size}; }

    /// Scores rise with logits, so logits rank alike where nothing is added to the scores; and they still differ where
    /// a sigmoid has saturated to 1 or a softmax underflowed to 0.
    const Scalar* ranks(const Scalar* logits) {
      if (biased_ == nullptr) return rule_.options_.group_top > 1 ? score_.data() : logits;
      for (Index e = 0; e < score_.size(); ++e) biased_[e] = score_(e) + rule_.selection_bias_(e);
      return biased_;
    }

    void choose_groups(const Scalar* rank) {
      const Index size = rule_.group_size();
      best_groups_->clear();
      for (Index g = 0; g < rule_.options_.num_groups; ++g) {
        best_groups_->offer(g, score_of_group(rank + g * size, size));
      }
      std::copy_n(best_groups_->items(), best_groups_->size(), group_);
      std::sort(group_, group_ + best_groups_->size());  // so that ties go to the lower expert
    }

    Scalar score_of_group(const Scalar* ranks, Index size) {
      best_in_group_->clear();
      for (Index e = 0; e < size; ++e) best_in_group_->offer(e, ranks[e]);
      return std::accumulate(best_in_group_->ranks(), best_in_group_->ranks() + best_in_group_->size(), Scalar(0));
    }

    const TopKChoice& rule_;
    Eigen::Map<Vector> score_;
    Scalar* rank_of_best_;
    Scalar* biased_ = nullptr;  // where there is a selection bias
    Index* group_ = nullptr;    // where groups are chosen, and so the next two
    std::optional<BestK<Scalar>> best_groups_, best_in_group_;
  };

 private:
  static constexpr Index tokens_a_task = 16;

  template <class Choose>
  void for_each_token(const ConstMatrixRef<Scalar>& logits, Routing<Scalar>& routing, Workers& workers,
                      const Choose& choose) const {
    routing.resize(top_k() * logits.cols());
    routing.weight_on = options_.weight_on;
    workers.for_each_band(logits.cols(), tokens_a_task, [&](Index first, Index last, Scratch& scratch) {
      Choice choice(*this, scratch);
      for (Index t = first; t < last; ++t) {
        const auto route = std::size_t(t * top_k());
        choose(t, choice, &routing.expert[route]);
        choice.weigh(&routing.expert[route], &routing.weight[route]);
        std::fill_n(&routing.token[route], top_k(), t);
      }
    });
  }

  Index num_experts_;
  TopKOptions options_;
  Vector selection_bias_;
};

}  // namespace moe::inline MOE_TARGET
