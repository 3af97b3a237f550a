/// @file  What balance losses measure, of all ranks together.
#pragma once

#include <cstddef>

#include "moe/core/check.hpp"
#include "moe/core/scratch.hpp"
#include "moe/core/types.hpp"
#include "moe/distributed/communicator.hpp"
#include "moe/distributed/sum_in_order.hpp"
#include "moe/losses/load_balancing.hpp"

namespace moe::inline MOE_TARGET::distributed {

/// Collective. Turns what each rank has measured of each expert, such as importance or smooth load, into that of the
/// tokens of all ranks.
/// @param of_experts  (num_experts), alike on all ranks
/// @param scratch     for intermediate results
inline void all_reduce(Eigen::ArrayXd& of_experts, const Communicator& comm, Scratch& scratch) {
  sum_in_order({of_experts.data(), std::size_t(of_experts.size())}, comm, scratch);
}

/// Collective. Turns each rank's shares into those of the global batch: load_balancing_loss() is then that of one
/// process with the tokens of all ranks, and add_load_balancing_gradient() adds this rank's part of its gradient. (A
/// loss for each sequence needs no other rank.)
/// @param shares   of one sequence, that is, measured without a sequence_length; of as many experts on all ranks
/// @param scratch  for intermediate results
/// @throws std::invalid_argument if they are of several sequences.
inline void all_reduce(ExpertShares& shares, const Communicator& comm, Scratch& scratch) {
  require_equal(shares.num_sequences(), 1, "all_reduce: shares.num_sequences()");
  const Index experts = shares.num_experts();
  Eigen::Map<Eigen::ArrayXd> all(scratch.array<double>(2 * experts + 2), 2 * experts + 2);
  all << shares.routes, shares.probability, shares.out_of, shares.tokens;
  sum_in_order({all.data(), std::size_t(all.size())}, comm, scratch);
  shares.routes = all.head(experts);
  shares.probability = all.segment(experts, experts);
  shares.out_of = all.segment(2 * experts, 1);
  shares.tokens = all.tail(1);
}

}  // namespace moe::inline MOE_TARGET::distributed
