/// @file  Drops the routes that an expert has no room for.
#pragma once

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <span>
#include <string>
#include <tuple>
#include <utility>

#include "moe/core/check.hpp"
#include "moe/core/routing.hpp"
#include "moe/core/scratch.hpp"
#include "moe/core/sequences.hpp"
#include "moe/core/tokens.hpp"
#include "moe/core/types.hpp"
#include "moe/kernels/scores.hpp"
#include "moe/routers/filters/filtered_router.hpp"
#include "moe/runtime/workers.hpp"

namespace moe::inline MOE_TARGET {

/// How many routes one expert takes, 0 or more, of so many tokens, where there are so many experts: one of the
/// functions below, or a lambda of your own.
using CapacityRule = std::function<Index(Index num_tokens, Index num_experts)>;

namespace detail {

/// ⌈room⌉; without bound where it is more than can be counted.
inline Index whole_routes(double room) {
  return room < 0x1p62 ? static_cast<Index>(std::ceil(room)) : std::numeric_limits<Index>::max();
}

}  // namespace detail

/// max(minimum, ⌈factor · top_k · tokens / experts⌉): `factor` times an even share.
/// Lepikhin et al. 2020, "GShard", §2.2, arXiv:2006.16668; Fedus et al. 2021, "Switch Transformers", arXiv:2101.03961.
/// @throws std::invalid_argument unless factor > 0 and top_k ≥ 1.
inline CapacityRule capacity_factor(double factor, Index top_k, Index minimum = 0) {
  require(factor > 0, "capacity_factor: factor is " + std::to_string(factor) + ", expected more than 0");
  require_between(1, top_k, std::numeric_limits<Index>::max(), "capacity_factor: top_k");
  return [=](Index num_tokens, Index num_experts) {
    const double share = double(num_tokens) * double(top_k) / double(num_experts);
    return std::max(minimum, detail::whole_routes(share * factor));
  };
}

/// ⌈fraction · tokens⌉, whatever the number of experts: NLLB's.
/// @throws std::invalid_argument unless fraction > 0.
inline CapacityRule capacity_fraction(double fraction) {
  require(fraction > 0, "capacity_fraction: fraction is " + std::to_string(fraction) + ", expected more than 0");
  return [=](Index num_tokens, Index) { return detail::whole_routes(fraction * double(num_tokens)); };
}

/// The same number whatever the batch.
/// @throws std::invalid_argument if it is negative.
inline CapacityRule fixed_capacity(Index capacity) {
  require_between(0, capacity, std::numeric_limits<Index>::max(), "fixed_capacity: capacity");
  return [=](Index, Index) { return capacity; };
}

/// Which of an expert's routes find room.
enum class Priority {
  choice,       ///< first choices in order of tokens, then second choices, …: GShard, ST-MoE, NLLB
  position,     ///< in order of tokens: Switch, Megatron's "position"
  probability,  ///< larger weights first: Megatron's "probs"
  batch,        ///< as `choice`, but tokens in order of their largest probability: V-MoE, arXiv:2106.05974, §4
};

/// How many routes an expert takes, and which.
struct CapacityOptions {
  CapacityRule capacity;
  Priority priority = Priority::choice;
  bool per_sequence = false;  // each sequence of SideInputs::sequence_length by itself; else the batch as a whole
  bool renormalize = false;   // the kept weights of a token become w / max(Σw, floor)
  double floor = 0;
  Index unlimited = 0;  // so many last experts take all of their routes: those that TopKOptions choose always
};

namespace detail {

/// The largest softmax probability of each token; without logits its largest weight. A NaN ranks last.
template <class Scalar>
void largest_probabilities(const Routing<Scalar>& routing, Index num_tokens, Index num_experts, Scalar* largest,
                           Scratch& scratch) {
  constexpr Scalar lowest = -std::numeric_limits<Scalar>::infinity();
  std::fill_n(largest, num_tokens, lowest);
  if (Index(routing.logits.size()) == num_experts * num_tokens) {
    auto scores = scratch.matrix<Scalar>(num_experts, 1);
    const Eigen::Map<const Matrix<Scalar>> logits(routing.logits.data(), num_experts, num_tokens);
    for (Index t = 0; t < num_tokens; ++t) {
      softmax(logits.col(t), scores);
      if (!scores.hasNaN()) largest[t] = scores.maxCoeff();
    }
  } else {
    for (const auto& [token, expert, weight] : routing) {
      if (weight > largest[token]) largest[token] = weight;
    }
  }
}

/// A route that asks for room.
template <class Scalar>
struct Waiting {
  Index sequence, choice;
  Scalar rank;  // larger is better; never a NaN
  Index token, route;

  friend bool operator<(const Waiting& a, const Waiting& b) {
    return std::tie(a.sequence, a.choice, b.rank, a.token, a.route) <
           std::tie(b.sequence, b.choice, a.rank, b.token, b.route);
  }
};

/// The routes that are not dropped yet, sequence by sequence, first those that find room first.
template <class Scalar>
std::span<Waiting<Scalar>> queue_up(const Routing<Scalar>& routing, Index num_tokens, Index num_experts,
                                    const Sequences& sequences, Priority priority, Scratch& scratch) {
  auto* const queue = scratch.array<Waiting<Scalar>>(routing.size());
  auto* const choices = scratch.array<Index>(num_tokens);
  auto* const probability = scratch.array<Scalar>(num_tokens);
  std::fill_n(choices, num_tokens, Index(0));
  if (priority == Priority::batch) largest_probabilities(routing, num_tokens, num_experts, probability, scratch);

  std::size_t waiting = 0;
  for (Index r = 0; r < routing.size(); ++r) {
    const auto [t, expert, weight] = routing[r];
    const Index choice = choices[t]++;
    if (routing.is_dropped(r)) continue;
    Waiting<Scalar>& one = queue[waiting++] = {sequences.of(t), 0, Scalar(0), t, r};
    if (priority == Priority::choice || priority == Priority::batch) one.choice = choice;
    if (priority == Priority::batch) one.rank = probability[t];
    if (priority == Priority::probability) {
      one.rank = std::isnan(weight) ? -std::numeric_limits<Scalar>::infinity() : weight;
    }
  }
  std::sort(queue, queue + waiting);
  return {queue, waiting};
}

template <class Scalar>
void renormalize_kept(Routing<Scalar>& routing, Index num_tokens, Scalar floor, Scratch& scratch) {
  auto* const sum = scratch.array<Scalar>(num_tokens);
  std::fill_n(sum, num_tokens, Scalar(0));
  for (Index r = 0; r < routing.size(); ++r) {
    if (!routing.is_dropped(r)) sum[routing[r].token] += routing[r].weight;
  }
  for (Index r = 0; r < routing.size(); ++r) {
    const Scalar total = sum[routing[r].token];
    const Scalar divisor = total < floor ? floor : total;  // a NaN stays one
    if (!routing.is_dropped(r) && divisor != 0) routing.weight[std::size_t(r)] /= divisor;
  }
}

}  // namespace detail

/// Marks as dropped what is beyond an expert's capacity. What was dropped before takes no room. Of equals the lower
/// token goes first, then the earlier route; a NaN weight ranks last.
/// @param sequence_length,  sequence_starts  of SideInputs; read if options.per_sequence
/// @throws std::invalid_argument if there is no capacity rule, or its number is negative, if the tokens are not whole
/// sequences, or if a route leads nowhere.
template <class Scalar>
void limit_capacity(Routing<Scalar>& routing, Index num_tokens, Index num_experts, Index sequence_length,
                    const CapacityOptions& options, Scratch& scratch, std::span<const Index> sequence_starts = {}) {
  require(bool(options.capacity), "limit_capacity: options.capacity is missing");
  const auto sequences = options.per_sequence
                             ? Sequences(num_tokens, sequence_length, sequence_starts, "limit_capacity")
                             : Sequences(num_tokens, 0, {}, "limit_capacity");
  require_routes(routing, num_tokens, num_experts);

  require_between(0, options.unlimited, num_experts, "limit_capacity: options.unlimited");
  const Index num_limited = num_experts - options.unlimited;

  auto* const capacity = scratch.array<Index>(sequences.count());
  for (Index s = 0; s < sequences.count(); ++s) {
    capacity[s] = options.capacity(sequences.size(s), num_limited);
    require_at_least(0, capacity[s], "limit_capacity: what options.capacity() returned");
  }
  auto* const taken = scratch.array<Index>(num_experts);
  routing.dropped.reserve(routing.token.size());  // so that a warm call may drop more than those before it
  Index sequence = -1;
  for (const auto& one : detail::queue_up(routing, num_tokens, num_experts, sequences, options.priority, scratch)) {
    if (sequence != one.sequence) std::fill_n(taken, num_experts, Index(0));
    sequence = one.sequence;
    const Index expert = routing[one.route].expert;
    Index& of_expert = taken[expert];
    if (of_expert < capacity[sequence] || expert >= num_limited) {
      ++of_expert;
    } else {
      routing.drop(one.route);
    }
  }
  if (options.renormalize) detail::renormalize_kept(routing, num_tokens, Scalar(options.floor), scratch);
}

/// limit_capacity(), as a filter.
struct CapacityFilter {
  CapacityOptions options;

  template <class Scalar>
  void apply(const Tokens<Scalar>& tokens, Index num_experts, Routing<Scalar>& routing, Workers& workers) const {
    limit_capacity(routing, tokens.count(), num_experts, tokens.side.sequence_length, options, workers.shared(),
                   tokens.side.sequence_starts);
  }
};

/// A router whose experts have limited room.
template <class R>
class WithCapacity : public FilteredRouter<R, CapacityFilter> {
 public:
  /// @throws std::invalid_argument if there is no capacity rule.
  WithCapacity(R router, CapacityOptions options)
      : WithCapacity::FilteredRouter(std::move(router), {std::move(options)}) {
    require(bool(this->options().capacity), "WithCapacity: options.capacity is missing");
  }
};

}  // namespace moe::inline MOE_TARGET
