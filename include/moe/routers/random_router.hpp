/// @file  The baseline that knows nothing: experts at random.
#pragma once

#include <cstdint>

#include "moe/core/check.hpp"
#include "moe/core/random_number.hpp"
#include "moe/core/routing.hpp"
#include "moe/core/tokens.hpp"
#include "moe/core/types.hpp"
#include "moe/routers/detail/equal_weights.hpp"
#include "moe/runtime/workers.hpp"

namespace moe::inline MOE_TARGET {

/// top_k different experts at random for each token, each of weight 1 / top_k. A function of the token's place in the
/// batch and of the seed, SideInputs::seed before its own; never of x. Has no logits.
template <class Scalar_>
class RandomRouter {
 public:
  using Scalar = Scalar_;

  /// @throws std::invalid_argument unless 1 ≤ top_k ≤ num_experts.
  RandomRouter(Index d_model, Index num_experts, Index top_k, std::uint64_t seed)
      : d_model_(d_model), num_experts_(num_experts), top_k_(top_k), seed_(seed) {
    require_between(1, top_k, num_experts, "RandomRouter: top_k");
  }

  Index d_model() const { return d_model_; }
  Index num_experts() const { return num_experts_; }
  Index top_k() const { return top_k_; }
  std::uint64_t seed() const { return seed_; }

  void route(const Tokens<Scalar>& tokens, Routing<Scalar>& routing, Workers& workers) const {
    const std::uint64_t seed = tokens.side.seed.value_or(seed_);
    route_equally(tokens.count(), top_k_, routing, workers, [&](Index t, Index* expert) {
      random_set(num_experts_, top_k_, seed, static_cast<std::uint64_t>(t * top_k_), expert);
    });
  }

  template <class Visit>
  void visit_parameters(Visit&) {}

 private:
  Index d_model_, num_experts_, top_k_;
  std::uint64_t seed_;
};

}  // namespace moe::inline MOE_TARGET
