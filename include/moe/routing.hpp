/// @file  Who goes where: the only thing a router says and the only thing dispatch needs to hear.
#pragma once

#include <vector>

#include "moe/types.hpp"

namespace moe {

/// Where a route's weight is multiplied in: weight · expert(x), or expert(weight · x) as Llama 4 does.
enum class WeightOn { output, input };

/// A list of routes; route r sends token[r] to expert[r] and counts for weight[r].
/// Token-choice routers write top_k routes a token, expert-choice routers as many as an expert takes.
template <class Scalar>
struct Routing {
  std::vector<Index> token;
  std::vector<Index> expert;
  std::vector<Scalar> weight;
  WeightOn weight_on = WeightOn::output;

  /// (num_experts × n_tokens), column by column: what the router computed before it chose. Losses read it; a router
  /// without logits leaves it empty.
  std::vector<Scalar> logits;

  Index size() const { return static_cast<Index>(token.size()); }

  void clear() {
    token.clear();
    expert.clear();
    weight.clear();
    logits.clear();
    weight_on = WeightOn::output;
  }

  void add(Index to_token, Index to_expert, Scalar with_weight) {
    token.push_back(to_token);
    expert.push_back(to_expert);
    weight.push_back(with_weight);
  }

  /// Makes room for routes that are then written by index, in any order.
  void resize(Index num_routes) {
    token.resize(std::size_t(num_routes));
    expert.resize(std::size_t(num_routes));
    weight.resize(std::size_t(num_routes));
  }
};

}  // namespace moe
