/// @file  The router whose experts choose their tokens.
#pragma once

#include <algorithm>
#include <span>
#include <utility>

#include "moe/core/check.hpp"
#include "moe/core/routing.hpp"
#include "moe/core/scratch.hpp"
#include "moe/core/sequences.hpp"
#include "moe/core/tokens.hpp"
#include "moe/core/types.hpp"
#include "moe/kernels/scores.hpp"
#include "moe/routers/detail/best_k.hpp"
#include "moe/routers/detail/by_expert.hpp"
#include "moe/routers/filters/capacity.hpp"
#include "moe/routers/linear_logits.hpp"
#include "moe/routers/logits_router.hpp"
#include "moe/runtime/workers.hpp"

namespace moe::inline MOE_TARGET {

/// How many tokens an expert takes, and of which.
struct ExpertChoiceOptions {
  /// How many tokens an expert takes of so many; never more than there are. The default is the paper's: as many as if
  /// each token had two experts.
  CapacityRule capacity = capacity_factor(1, 2);
  bool per_sequence = false;  // of each sequence of SideInputs; else of the batch as a whole
};

namespace detail {

/// A token that an expert may take.
template <class Scalar>
struct Candidate {
  Scalar rank;
  Index token;

  bool operator<(const Candidate& other) const { return ranks_before(rank, token, other.rank, other.token); }
};

/// Writes the `count` best of tokens first, first + 1, … to `chosen`, best first. Needs room for all as candidates.
template <class Scalar, class Scores>
void choose_tokens(const Scores& scores, Index first, Index count, Index* chosen, Candidate<Scalar>* candidates) {
  for (Index i = 0; i < scores.size(); ++i) candidates[i] = {rank_of(Scalar(scores(i))), first + i};
  if (count < scores.size()) std::nth_element(candidates, candidates + count, candidates + scores.size());
  std::sort(candidates, candidates + count);
  for (Index i = 0; i < count; ++i) chosen[i] = candidates[i].token;
}

}  // namespace detail

/// p = softmax(logits) over the experts; then each expert takes the tokens of largest p, as many as it has capacity
/// for, each weighted by p. Every expert gets the same number of tokens; a token gets any number of experts, or none.
/// Zhou et al. 2022, "Mixture-of-Experts with Expert Choice Routing", arXiv:2202.09368, §3.2.
///
/// Routes lie sequence by sequence, expert by expert, best first. Ties go to the lower token. A NaN ranks last: its
/// token is taken where nothing else is left, and then the weight is NaN.
/// Takes O(n_tokens · num_experts) time on average, and the time to sort what is chosen.
///
/// @param logits            (num_experts × n_tokens)
/// @param sequence_length,  sequence_starts  of SideInputs; read if options.per_sequence
/// @throws std::invalid_argument if there is no capacity rule, or its number is negative, or if the tokens are not
/// whole sequences.
template <class Scalar>
void let_experts_choose(const ConstMatrixRef<Scalar>& logits, Index sequence_length, const ExpertChoiceOptions& options,
                        Routing<Scalar>& routing, Workers& workers, std::span<const Index> sequence_starts = {}) {
  require(bool(options.capacity), "ExpertChoice: options.capacity is missing");
  const Index num_experts = logits.rows(), num_tokens = logits.cols();
  const auto sequences = options.per_sequence ? Sequences(num_tokens, sequence_length, sequence_starts, "ExpertChoice")
                                              : Sequences(num_tokens, 0, {}, "ExpertChoice");
  auto* const first_choice = workers.shared().template array<Index>(sequences.count() + 1);  // of an expert: its routes
  first_choice[0] = 0;
  Index longest = 0;
  const auto tokens_of_expert = [&](Index sequence) {
    const Index length = sequences.size(sequence);
    const Index capacity = options.capacity(length, num_experts);
    require_at_least(0, capacity, "ExpertChoice: what options.capacity() returned");
    return std::min(capacity, length);
  };
  for (Index s = 0; s < sequences.count(); ++s) {
    first_choice[s + 1] = first_choice[s] + tokens_of_expert(s);
    longest = std::max(longest, sequences.size(s));
  }

  auto by_token = aligned_columns<Scalar>(num_experts, num_tokens, workers.shared());
  workers.for_each_band(num_tokens, items_a_task(num_experts), [&](Index first, Index last, Scratch&) {
    for (Index t = first; t < last; ++t) softmax(logits.col(t), by_token.col(t));
  });
  const auto p = by_expert(by_token, workers);

  routing.weight_on = WeightOn::output;
  routing.resize(num_experts * first_choice[sequences.count()]);
  workers.for_each_band(
      sequences.count() * num_experts, items_a_task(longest), [&](Index begin, Index end, Scratch& scratch) {
        auto* const candidates = scratch.array<detail::Candidate<Scalar>>(longest);
        for (Index choice = begin; choice < end; ++choice) {
          const Index s = choice / num_experts, e = choice % num_experts, count = first_choice[s + 1] - first_choice[s];
          const Index first_route = first_choice[s] * num_experts + e * count;
          auto* const token = routing.token.data() + first_route;
          detail::choose_tokens<Scalar>(p.col(e).segment(sequences.first(s), sequences.size(s)), sequences.first(s),
                                        count, token, candidates);
          for (Index i = 0; i < count; ++i) {
            routing.expert[std::size_t(first_route + i)] = e;
            routing.weight[std::size_t(first_route + i)] = p(token[i], e);
          }
        }
      });
}

/// let_experts_choose(). Results do not depend on the number of workers. Who gets a token depends on the tokens beside
/// it, so a batch must not mix what may not see each other.
template <class Scalar_>
class ChoiceByExperts {
 public:
  using Scalar = Scalar_;

  /// @throws std::invalid_argument if there is no capacity rule.
  explicit ChoiceByExperts(ExpertChoiceOptions options = {}) : options_(std::move(options)) {
    require(bool(options_.capacity), "ExpertChoice: options.capacity is missing");
  }

  const ExpertChoiceOptions& options() const { return options_; }

  /// Reads SideInputs::sequence_length, or sequence_starts.
  /// @throws std::invalid_argument if the tokens are not whole sequences.
  void route(const Tokens<Scalar>& logits, Routing<Scalar>& routing, Workers& workers) const {
    let_experts_choose<Scalar>(logits.x, logits.side.sequence_length, options_, routing, workers,
                               logits.side.sequence_starts);
  }

 private:
  ExpertChoiceOptions options_;
};

/// logits = W·x; then ChoiceByExperts.
template <class Scalar>
class ExpertChoice : public LogitsRouter<LinearLogits<Scalar>, ChoiceByExperts<Scalar>> {
 public:
  /// @param weight  (num_experts × d_model): row e scores expert e
  /// @throws std::invalid_argument if there is no expert or no capacity rule.
  ExpertChoice(Weight<Scalar> weight, ExpertChoiceOptions options = {})
      : ExpertChoice::LogitsRouter(LinearLogits<Scalar>(std::move(weight), {}, "ExpertChoice"),
                                   ChoiceByExperts<Scalar>(std::move(options))) {}
};

}  // namespace moe::inline MOE_TARGET
