/// @file  From logits to the top_k routes of each token.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <string>
#include <string_view>
#include <utility>

#include "moe/core/check.hpp"
#include "moe/core/routing.hpp"
#include "moe/core/types.hpp"
#include "moe/kernels/scores.hpp"
#include "moe/routers/detail/best_k.hpp"
#include "moe/routers/detail/select_as_torch.hpp"
#include "moe/runtime/workers.hpp"

namespace moe::inline MOE_TARGET {

/// What the selection bias b is added to, when experts are chosen.
enum class BiasOn {
  scores,  ///< selection scores are s + b
  logits,  ///< selection scores are l + b: Kolibri 1
};

/// What becomes of groups that are not among the best.
enum class RejectedGroups {
  never_chosen,    ///< their experts are not looked at
  ranked_at_zero,  ///< their experts rank as if their selection score were 0, so one may be chosen where those of the
                   ///< others are negative, and is then weighed as any other: A.X K2, Mistral Small 4
};

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
///   Kolibri 1        {.top_k = 6, .score = Score::sigmoid, .bias_on = BiasOn::logits}, and a selection bias
///   A.X K2           as DeepSeek-V3, with .rejected_groups = RejectedGroups::ranked_at_zero
///   Kimi-Linear, as NeMo AutoModel can train it: as DeepSeek-V3, with .weigh_biased = true
///   Inkling          {.top_k = 6, .score = Score::sigmoid, .renormalize = true, .scale = 8, .always_chosen = 2}, and a
///                    selection bias; the shared experts are the last two of the group
struct TopKOptions {
  Index top_k = 1;
  Score score = Score::softmax;
  bool renormalize = false;  // weights become w / max(‖w‖ + epsilon, floor); 0 where that would be 0 / 0
  double norm = 1;           // which: ‖w‖ = (Σ wᵖ)^(1/p)
  double epsilon = 0;
  double floor = 0;       // 0: none
  double scale = 1;       // multiplies the weights, last
  Index num_groups = 1;   // consecutive experts of equal number form a group …
  Index kept_groups = 1;  // … and only the best groups may send tokens:
  Index group_top = 1;    // those whose so many best experts, or all, have the largest sum of selection scores
  RejectedGroups rejected_groups = RejectedGroups::never_chosen;
  BiasOn bias_on = BiasOn::scores;
  bool weigh_biased = false;  // weights are made of s + b, which may be negative, instead of s
  Index always_chosen = 0;  // so many last experts are every token's, beside the top_k of the others, which alone have
                            // groups and a selection bias; scores and renormalisation are over all
  WeightOn weight_on = WeightOn::output;

  bool operator==(const TopKOptions&) const = default;
};

/// Token choice: for each token, the top_k experts of largest selection score s + selection_bias among the kept groups,
/// each weighted by s (not by the biased score, unless the options say so); then those that are always chosen. Ties:
/// the lower index wins; where rejected groups rank at zero, and so many experts do, those that torch.topk takes on a
/// CPU, as the reference implementations of these models.
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

  /// @param selection_bias  (num_experts − always_chosen) added to the scores when choosing, not when weighting; or
  ///                        empty
  /// @param who             what errors begin with
  /// @throws std::invalid_argument unless the sizes fit, num_groups divides the number of experts that are not always
  /// chosen, the kept groups hold top_k, and numbers are finite, epsilon and floor not negative; or if biased scores
  /// are to weigh whose bias is on logits, or whose norm, other than 1 and 2, is none of negative numbers.
  TopKChoice(Index num_experts, const TopKOptions& options, Vector selection_bias = {},
             std::string_view who = "TopKChoice")
      : num_experts_(num_experts), options_(options), selection_bias_(std::move(selection_bias)) {
    require_options(options, who);
  }

  Index num_experts() const { return num_experts_; }
  /// Routes of a token: options().top_k and those always chosen.
  Index top_k() const { return options_.top_k + options_.always_chosen; }
  const TopKOptions& options() const { return options_; }
  const Vector& selection_bias() const { return selection_bias_; }
  auto selection_bias() { return to_write(selection_bias_); }

  /// The bias does not learn by gradients.
  template <class Visit>
  void visit_parameters(Visit& visit) {
    NamedBias bias{selection_bias_};
    visit.frozen("", bias);
  }

  const TopKChoice& weigher() const { return *this; }  ///< As of any choice whose weights are those of one of these.

  /// @throws std::invalid_argument unless they are as many as it has experts.
  Index experts_for(Index num_logits) const {
    require_equal(num_logits, num_experts_, "LogitsRouter: logits.num_experts(), against that of the choice,");
    return num_experts_;
  }

  /// What the weight of an expert with this score is made of.
  Scalar weighed(Index expert, Scalar score) const {
    return options_.weigh_biased && expert < selection_bias_.size() ? score + selection_bias_(expert) : score;
  }

  /// Writes top_k() routes for each token, side by side, best first, at the end those always chosen.
  /// @param logits  (num_experts × n_tokens)
  void route(const ConstMatrixRef<Scalar>& logits, Routing<Scalar>& routing, Workers& workers) const {
    for_each_token(logits, routing, workers, [&](Index t, Choice& choice, Index* expert) {
      choice.read(logits.col(t));
      choice.choose(logits.col(t), expert);
    });
  }

  /// The same for experts that are chosen already: expert_of(t) points to the top_k() experts of token t.
  template <class ExpertOf>
  void weigh(const ConstMatrixRef<Scalar>& logits, Routing<Scalar>& routing, Workers& workers,
             const ExpertOf& expert_of) const {
    for_each_token(logits, routing, workers, [&](Index t, Choice& choice, Index* expert) {
      choice.read(logits.col(t));
      std::copy_n(expert_of(t), top_k(), expert);
    });
  }

 private:
  struct NamedBias {
    Vector& numbers;

    template <class Visit>
    void visit_parameters(Visit& visit) {
      visit("selection_bias", numbers);
    }
  };

  Index num_selectable() const { return num_experts_ - options_.always_chosen; }
  Index group_size() const { return num_selectable() / options_.num_groups; }
  bool chooses_groups() const { return options_.kept_groups < options_.num_groups; }
  bool ranks_rejected() const { return chooses_groups() && options_.rejected_groups == RejectedGroups::ranked_at_zero; }

 public:
  /// One worker's memory for choosing, token after token: read() a token's logits first.
  class Choice {
   public:
    /// @param scratch  the worker's
    Choice(const TopKChoice& rule, Scratch& scratch)
        : rule_(rule),
          score_(scratch.array<Scalar>(rule.num_experts()), rule.num_experts()),
          rank_of_best_(scratch.array<Scalar>(rule.options_.top_k)) {
      if (rule.selection_bias_.size() > 0 || rule.ranks_rejected()) {
        selection_score_ = scratch.array<Scalar>(rule.num_selectable());
      }
      if (rule.ranks_rejected()) {
        ranked_ = scratch.array<detail::RankedItem<Scalar>>(rule.num_selectable());
        chosen_ = scratch.array<Index>(rule.options_.top_k);
      }
      if (rule.chooses_groups()) {
        group_ = scratch.array<Index>(rule.options_.kept_groups);
        best_groups_ = BestK<Scalar>(scratch, rule.options_.kept_groups);
        best_in_group_ = BestK<Scalar>(scratch, std::min(rule.options_.group_top, rule.group_size()));
      }
    }

    /// Makes scores of one token's logits (num_experts).
    template <class Logits>
    void read(const Logits& logits) {
      score_logits(rule_.options_.score, vector_at(logits.data(), score_.size()), score_);
    }

    /// The top_k best of the kept groups, then those always chosen. Experts of other groups are not looked at, so
    /// nothing has to mask them, unless they shall rank at 0.
    template <class Logits>
    void choose(const Logits& logits, Index* expert) {
      const Scalar* const rank = ranks(logits.data());
      BestK<Scalar> best(rule_.options_.top_k, expert, rank_of_best_);
      const auto offer = [&](Index first, Index end) {
        for (Index e = first; e < end; ++e) best.offer(e, rank[e]);
      };
      if (rule_.chooses_groups()) choose_groups(rank);
      if (rule_.ranks_rejected()) {
        rank_rejected_at_zero();
        choose_as_torch(expert);
      } else if (!rule_.chooses_groups()) {
        offer(0, rule_.num_selectable());
      } else {
        for (Index g = 0; g < rule_.options_.kept_groups; ++g) {
          offer(group_[g] * rule_.group_size(), (group_[g] + 1) * rule_.group_size());
        }
      }
      std::iota(expert + rule_.options_.top_k, expert + rule_.top_k(), rule_.num_selectable());
    }

    /// The weights of top_k() experts.
    void weigh(const Index* expert, Scalar* weight) {
      const TopKOptions& options = rule_.options_;
      Eigen::Map<Vector> weights(weight, rule_.top_k());
      for (Index k = 0; k < weights.size(); ++k) weights(k) = rule_.weighed(expert[k], score_(expert[k]));
      if (options.score == Score::softmax_of_chosen) softmax(vector_at(weight, weights.size()), weights);
      if (options.renormalize) {
        renormalize(weights, Scalar(options.norm), Scalar(options.epsilon), Scalar(options.floor));
      }
      for (Index k = 0; k < weights.size(); ++k) weights(k) *= Scalar(options.scale);
    }

   private:
    static Eigen::Map<const Vector> vector_at(const Scalar* numbers, Index size) { return {numbers, size}; }

    /// Selection scores, or what ranks like them: scores rise with logits, so logits do where nothing is added to the
    /// scores; and they still differ where a sigmoid has saturated to 1 or a softmax underflowed to 0.
    const Scalar* ranks(const Scalar* logits) {
      const Scalar* const before = rule_.options_.bias_on == BiasOn::logits ? logits : score_.data();
      if (selection_score_ == nullptr) return rule_.options_.group_top > 1 ? before : logits;
      std::copy_n(before, rule_.num_selectable(), selection_score_);
      for (Index e = 0; e < rule_.selection_bias_.size(); ++e) selection_score_[e] += rule_.selection_bias_(e);
      return selection_score_;
    }

    void rank_rejected_at_zero() {
      const Index size = rule_.group_size();
      for (Index g = 0, kept = 0; g < rule_.options_.num_groups; ++g) {
        if (kept < rule_.options_.kept_groups && group_[kept] == g) {
          ++kept;
        } else {
          std::fill_n(selection_score_ + g * size, size, Scalar(0));
        }
      }
    }

    void choose_as_torch(Index* expert) {
      const Index k = rule_.options_.top_k, n = rule_.num_selectable();
      for (Index e = 0; e < n; ++e) ranked_[e] = {rank_of(selection_score_[e]), e};
      detail::select_as_torch(ranked_, k, n);
      for (Index i = 0; i < k; ++i) expert[i] = ranked_[i].item;
      std::sort(expert, expert + k);  // so that ties go to the lower expert
      std::copy_n(expert, k, chosen_);
      BestK<Scalar> best(k, expert, rank_of_best_);
      for (Index i = 0; i < k; ++i) best.offer(chosen_[i], selection_score_[chosen_[i]]);
    }

    void choose_groups(const Scalar* rank) {
      const Index size = rule_.group_size();
      best_groups_.clear();
      for (Index g = 0; g < rule_.options_.num_groups; ++g) {
        best_groups_.offer(g, score_of_group(rank + g * size, size));
      }
      std::copy_n(best_groups_.items(), best_groups_.size(), group_);
      std::sort(group_, group_ + best_groups_.size());  // so that ties go to the lower expert
    }

    Scalar score_of_group(const Scalar* ranks, Index size) {
      best_in_group_.clear();
      for (Index e = 0; e < size; ++e) best_in_group_.offer(e, ranks[e]);
      return std::accumulate(best_in_group_.ranks(), best_in_group_.ranks() + best_in_group_.size(), Scalar(0));
    }

    const TopKChoice& rule_;
    Eigen::Map<Vector> score_;
    Scalar* rank_of_best_;
    Scalar* selection_score_ = nullptr;             // where they are not the scores
    detail::RankedItem<Scalar>* ranked_ = nullptr;  // where experts of rejected groups rank, and so the next
    Index* chosen_ = nullptr;
    Index* group_ = nullptr;  // where groups are chosen, and so the next two
    BestK<Scalar> best_groups_, best_in_group_;
  };

 private:
  static constexpr Index tokens_a_task = 16;

  /// Not in the constructor, which without optimisation is compiled twice.
  void require_options(const TopKOptions& options, std::string_view who) const {
    const std::string name(who);
    require(num_experts_ >= 1, name + ": needs at least one expert");
    require_between(0, options.always_chosen, num_experts_ - 1, name + ": always_chosen");
    require_between(1, options.num_groups, num_selectable(), name + ": num_groups");
    require(num_selectable() % options.num_groups == 0,
            name + ": num_groups " + std::to_string(options.num_groups) + " does not divide num_experts " +
                (options.always_chosen > 0 ? "- always_chosen " : "") + std::to_string(num_selectable()));
    require_between(1, options.kept_groups, options.num_groups, name + ": kept_groups");
    require(options.group_top >= 1,
            name + ": group_top is " + std::to_string(options.group_top) + ", expected 1 or more");
    require_between(1, options.top_k, ranks_rejected() ? num_selectable() : options.kept_groups * group_size(),
                    name + ": top_k");
    constexpr double largest = std::numeric_limits<Scalar>::max();
    require_in_range(0, options.epsilon, largest, name + ": epsilon");
    require_in_range(0, options.floor, largest, name + ": floor");
    require_in_range(-largest, options.scale, largest, name + ": scale");
    require(options.norm > 0, name + ": norm is " + std::to_string(options.norm) + ", expected more than 0");
    if (selection_bias_.size() > 0) {
      require_equal(selection_bias_.size(), num_selectable(), name + ": selection_bias.size()");
    }
    if (options.weigh_biased) {
      require(options.bias_on == BiasOn::scores, name +
                                                     ": weigh_biased goes with BiasOn::scores; for weights of biased "
                                                     "logits, add the bias to the logits");
      require(!options.renormalize || options.norm == 1 || options.norm == 2,
              name + ": norm is " + std::to_string(options.norm) + ", expected 1 or 2 beside weigh_biased");
    }
  }

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
