/// @file  What the weights of each expert's routes add up to.
#pragma once

#include <cstddef>

#include "moe/core/routing.hpp"
#include "moe/core/token_mask.hpp"
#include "moe/core/types.hpp"

namespace moe::inline MOE_TARGET {

/// importance_e = Σ_t weight of expert e for token t, of the routes that are not dropped. Its squared_variation(), in
/// variation.hpp, is the loss of Shazeer et al. 2017, §4, arXiv:1701.06538. Where probabilities are wanted instead of
/// weights, they are the `probability` of ExpertShares.
/// @param importance  (num_experts) resized and written
/// @throws std::invalid_argument if a route leads nowhere, or if the mask has another length.
template <class Scalar>
void measure_importance(const Routing<Scalar>& routing, Index num_tokens, Index num_experts, Eigen::ArrayXd& importance,
                        TokenMask mask = {}) {
  require_routes(routing, num_tokens, num_experts);
  require_mask(mask, num_tokens, "measure_importance");
  importance.setZero(num_experts);
  for (Index r = 0; r < routing.size(); ++r) {
    const auto its = routing[r];
    if (!is_masked(mask, its.token) && !routing.is_dropped(r)) importance(its.expert) += double(its.weight);
  }
}

}  // namespace moe::inline MOE_TARGET
