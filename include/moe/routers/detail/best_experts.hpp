/// @file  The best experts of each token, by any rank.
#pragma once

#include <algorithm>

#include "moe/core/scratch.hpp"
#include "moe/core/types.hpp"
#include "moe/routers/detail/best_k.hpp"
#include "moe/routers/detail/by_expert.hpp"
#include "moe/runtime/workers.hpp"

namespace moe::inline MOE_TARGET {

/// The k experts of largest rank(e, t) for each token t, best first, as BestK has it: (k × n_tokens) in memory of the
/// workers.
template <class Scalar, class Rank>
Eigen::Map<Matrix<Index>> best_experts(Index num_experts, Index num_tokens, Index k, Workers& workers,
                                       const Rank& rank) {
  Eigen::Map<Matrix<Index>> expert(workers.shared().array<Index>(k * num_tokens), k, num_tokens);
  workers.for_each_band(num_tokens, items_a_task(num_experts), [&](Index first, Index last, Scratch& scratch) {
    BestK<Scalar> best(scratch, k);
    for (Index t = first; t < last; ++t) {
      best.clear();
      for (Index e = 0; e < num_experts; ++e) best.offer(e, rank(e, t));
      std::copy_n(best.items(), k, expert.col(t).data());
    }
  });
  return expert;
}

}  // namespace moe::inline MOE_TARGET
