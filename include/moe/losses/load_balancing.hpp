/// @file  The auxiliary loss that is least when all experts are equally busy.
#pragma once

#include <algorithm>
#include <cstddef>
#include <iterator>
#include <limits>
#include <stdexcept>
#include <string>

#include "moe/core/check.hpp"
#include "moe/core/routing.hpp"
#include "moe/core/scratch.hpp"
#include "moe/core/sequences.hpp"
#include "moe/core/token_mask.hpp"
#include "moe/core/types.hpp"
#include "moe/kernels/multiply_add.hpp"
#include "moe/kernels/scores.hpp"
#include "moe/kernels/vectors.hpp"
#include "moe/routers/detail/logits.hpp"
#include "moe/routers/top_k.hpp"

namespace moe::inline MOE_TARGET {

/// Which routes make the fractions f_e, and which scores the mean probabilities P_e, of E · Σ_e f_e · P_e. The defaults
/// are those of Megatron and MegaBlocks. Others differ in a few words:
///   GShard, Switch   {.choices = 1}; with the sequence_length, too, in most of their implementations
///   ST-MoE           {.choices = 1, .count_dropped = false, .sequence_length = S}
///   Hugging Face     {.divide_by_k = false, .mask = attention_mask}: Mixtral, Qwen, …
///   DeepSeek-V2      {.sequence_length = S}
///   DeepSeek-V3      {.score = Score::sigmoid, .sequence_length = S}
struct LoadBalancingOptions {
  /// The router's own. Scores that do not sum to one are divided by their sum; softmax_of_chosen is taken as softmax.
  Score score = Score::softmax;

  Index choices = 0;          // count only the first so many routes of each token, in the order of the list; 0: all
  bool divide_by_k = true;    // f_e is a fraction of the routes, so Σ f_e = 1; else of the tokens, so Σ f_e = k
  bool count_dropped = true;  // routes that a filter took out count as choices; else they count for no expert
  Index sequence_length = 0;  // a loss for each sequence of so many tokens, then their mean; 0: the batch is one
  TokenMask mask = {};        // (n_tokens) tokens that do not count, neither in f_e nor in P_e
};

/// The sums behind f_e and P_e. Those of micro-batches, threads or ranks add up to those of all tokens together, which
/// is what a loss over the global batch needs (Qiu et al. 2025, arXiv:2501.11873); so do those of layers, where their
/// tokens are counted as one batch.
struct ExpertShares {
  Eigen::ArrayXXd routes;       // (num_experts × num_sequences) f_e = routes / out_of
  Eigen::ArrayXXd probability;  // (num_experts × num_sequences) P_e = probability / tokens
  Eigen::ArrayXd out_of;        // (num_sequences) how many routes, or tokens, f_e is a fraction of
  Eigen::ArrayXd tokens;        // (num_sequences) how many count

  Index num_experts() const { return routes.rows(); }
  Index num_sequences() const { return routes.cols(); }  ///< 1 where the batch is one.

  /// Shares of nothing yet, of this shape.
  void set_zero(Index num_experts, Index num_sequences) {
    routes.setZero(num_experts, num_sequences);
    probability.setZero(num_experts, num_sequences);
    out_of.setZero(num_sequences);
    tokens.setZero(num_sequences);
  }

  /// Sequence by sequence. To shares that nothing was measured for, all can be added.
  /// @throws std::invalid_argument if the number of experts or of sequences differs.
  ExpertShares& operator+=(const ExpertShares& other) {
    if (num_experts() == 0) return *this = other;
    require_equal(other.num_experts(), num_experts(), "ExpertShares: other.num_experts()");
    require_equal(other.num_sequences(), num_sequences(), "ExpertShares: other.num_sequences()");
    routes += other.routes;
    probability += other.probability;
    out_of += other.out_of;
    tokens += other.tokens;
    return *this;
  }
};

namespace detail {

/// Which sequence of the options a token belongs to.
inline Index sequence_of(Index token, const LoadBalancingOptions& options) {
  return options.sequence_length > 0 ? token / options.sequence_length : 0;
}

inline Index count_sequences(Index num_tokens, const LoadBalancingOptions& options) {
  const Index length = tokens_per_sequence(num_tokens, options.sequence_length, "load_balancing");
  return options.sequence_length == 0 ? 1 : num_tokens / length;
}

template <class Scalar>
void count_routes(const Routing<Scalar>& routing, Index num_tokens, const LoadBalancingOptions& options,
                  ExpertShares& shares, Scratch& scratch) {
  auto* const seen = scratch.array<Index>(num_tokens);
  std::fill_n(seen, num_tokens, Index(0));
  for (Index r = 0; r < routing.size(); ++r) {
    const Index t = routing[r].token, s = sequence_of(t, options);
    if (is_masked(options.mask, t)) continue;
    if (options.choices > 0 && seen[t]++ >= options.choices) continue;
    if (options.divide_by_k) ++shares.out_of(s);
    if (options.count_dropped || !routing.is_dropped(r)) ++shares.routes(routing[r].expert, s);
  }
  if (!options.divide_by_k) shares.out_of = shares.tokens;
}

template <class Scalar>
void add_probabilities(const Routing<Scalar>& routing, Index num_tokens, Index num_experts,
                       const LoadBalancingOptions& options, ExpertShares& shares, Scratch& scratch) {
  const auto logits = logits_of(routing, num_experts, num_tokens);
  Eigen::Map<Eigen::VectorXd> probability(scratch.array<double>(num_experts), num_experts);
  for (Index t = 0; t < num_tokens; ++t) {
    if (is_masked(options.mask, t)) continue;
    const Index s = sequence_of(t, options);
    probability = logits.col(t).template cast<double>();
    probabilities(options.score, probability, probability);
    shares.probability.col(s) += probability.array();
    ++shares.tokens(s);
  }
}

}  // namespace detail

/// Counts routes and adds up probabilities (in double), for load_balancing_loss().
/// @param routing  with the logits that it was chosen from
/// @param scratch  for intermediate results
/// @throws std::invalid_argument if there are no experts, if the logits are not (num_experts × num_tokens), if a route
/// leads nowhere, if the tokens are not whole sequences, or if the mask has another length.
template <class Scalar>
void measure_shares(const Routing<Scalar>& routing, Index num_tokens, Index num_experts,
                    const LoadBalancingOptions& options, ExpertShares& shares, Scratch& scratch) {
  require(num_experts >= 1, "load_balancing: needs at least one expert");
  require_routes(routing, num_tokens, num_experts);
  require_equal(std::ssize(routing.logits), num_experts * num_tokens, "load_balancing: routing.logits.size()");
  require_between(0, options.choices, std::numeric_limits<Index>::max(), "load_balancing: choices");
  require_mask(options.mask, num_tokens, "load_balancing");
  shares.set_zero(num_experts, detail::count_sequences(num_tokens, options));
  detail::add_probabilities(routing, num_tokens, num_experts, options, shares, scratch);
  detail::count_routes(routing, num_tokens, options, shares, scratch);
}

/// The same with memory of its own.
template <class Scalar>
ExpertShares measure_shares(const Routing<Scalar>& routing, Index num_tokens, Index num_experts,
                            const LoadBalancingOptions& options = {}) {
  ExpertShares shares;
  Scratch scratch;
  measure_shares(routing, num_tokens, num_experts, options, shares, scratch);
  return shares;
}

/// ∂loss / ∂probability(e, s) = load_balancing_slope(shares, s) · routes(e, s): counts are constants.
inline double load_balancing_slope(const ExpertShares& shares, Index sequence) {
  const double tokens = shares.tokens(sequence), out_of = shares.out_of(sequence);
  const auto sequences = double((shares.tokens > 0).count());
  return out_of > 0 && tokens > 0 ? double(shares.num_experts()) / (out_of * tokens * sequences) : 0;
}

/// E · Σ_e f_e · P_e, averaged over the sequences that have tokens which count. It is 1 where the f_e are even, or the
/// P_e are, and Σ f_e = 1; it is 0 where no token or no route counts. The caller multiplies it by a coefficient.
///
/// Lepikhin et al. 2020, "GShard", §2.2, arXiv:2006.16668; Fedus et al. 2021, "Switch Transformers", §2.2,
/// arXiv:2101.03961; Zoph et al. 2022, "ST-MoE", arXiv:2202.08906; DeepSeek-V2, §2.2.3, arXiv:2405.04434; per sequence
/// with sigmoid scores: DeepSeek-V3, §2.1.2, arXiv:2412.19437. The idea is of Shazeer et al. 2017, arXiv:1701.06538.
inline double load_balancing_loss(const ExpertShares& shares) {
  double loss = 0;
  for (Index s = 0; s < shares.num_sequences(); ++s) {
    loss = kernels::multiply_add(load_balancing_slope(shares, s),
                                 kernels::dot(shares.routes.col(s), shares.probability.col(s)), loss);
  }
  return loss;
}

}  // namespace moe::inline MOE_TARGET
