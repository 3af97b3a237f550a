/// @file  top_k routes a token that all count alike.
#pragma once

#include <algorithm>

#include "moe/core/routing.hpp"
#include "moe/core/types.hpp"
#include "moe/runtime/workers.hpp"

namespace moe::inline MOE_TARGET {

/// Writes the routes of each token, side by side, each of weight 1 / top_k.
/// @param choose  choose(t, expert) writes the top_k experts of token t; it runs on any worker.
template <class Scalar, class Choose>
void route_equally(Index num_tokens, Index top_k, Routing<Scalar>& routing, Workers& workers, const Choose& choose) {
  constexpr Index tokens_a_task = 64;
  routing.resize(top_k * num_tokens);
  workers.for_each_band(num_tokens, tokens_a_task, [&](Index first, Index last, Scratch&) {
    for (Index t = first; t < last; ++t) {
      const auto route = std::size_t(t * top_k);
      choose(t, &routing.expert[route]);
      std::fill_n(&routing.weight[route], top_k, Scalar(1) / static_cast<Scalar>(top_k));
      std::fill_n(&routing.token[route], top_k, t);
    }
  });
}

}  // namespace moe::inline MOE_TARGET
