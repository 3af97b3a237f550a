/// @file  Routes of which each token may have another number.
#pragma once

#include <algorithm>
#include <numeric>

#include "moe/core/routing.hpp"
#include "moe/core/types.hpp"
#include "moe/runtime/workers.hpp"

namespace moe::inline MOE_TARGET {

/// Writes up to `most` routes for each token, side by side, in order of tokens: chosen in parallel, then counted, then
/// moved to their place in parallel.
/// @param make_choose  make_choose(scratch) gives a worker's choose(t, expert, weight), which writes the routes of
///                     token t, best first, and returns how many
template <class Scalar, class MakeChoose>
void route_varying(Index num_tokens, Index most, Routing<Scalar>& routing, Workers& workers,
                   const MakeChoose& make_choose) {
  constexpr Index tokens_a_task = 16;
  Scratch& shared = workers.shared();
  auto* const expert = shared.array<Index>(most * num_tokens);
  auto* const weight = shared.array<Scalar>(most * num_tokens);
  auto* const begin = shared.array<Index>(num_tokens + 1);
  begin[0] = 0;
  workers.for_each_band(num_tokens, tokens_a_task, [&](Index first, Index last, Scratch& scratch) {
    const auto choose = make_choose(scratch);
    for (Index t = first; t < last; ++t) begin[t + 1] = choose(t, expert + t * most, weight + t * most);
  });
  std::partial_sum(begin, begin + num_tokens + 1, begin);

  routing.resize(begin[num_tokens]);
  workers.for_each_band(num_tokens, tokens_a_task, [&](Index first, Index last, Scratch&) {
    for (Index t = first; t < last; ++t) {
      const Index count = begin[t + 1] - begin[t];
      std::copy_n(expert + t * most, count, routing.expert.data() + begin[t]);
      std::copy_n(weight + t * most, count, routing.weight.data() + begin[t]);
      std::fill_n(routing.token.data() + begin[t], count, t);
    }
  });
}

}  // namespace moe::inline MOE_TARGET
