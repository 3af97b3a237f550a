/// @file  Gradient of what the weights of each expert's routes add up to.
#pragma once

#include <cstddef>
#include <span>
#include <type_traits>

#include "moe/core/check.hpp"
#include "moe/core/routing.hpp"
#include "moe/core/token_mask.hpp"
#include "moe/core/types.hpp"

namespace moe::inline MOE_TARGET {

/// Through importance_e = Σ weight of e's routes that count: adds ∂L/∂importance_e to each of them.
/// @param d_importance  (num_experts), such as squared_variation_gradient(importance)
/// @param d_weight      ∂L/∂weight of each route, added to
/// @throws std::invalid_argument if d_weight has not an entry for each route.
template <class Scalar>
void add_importance_gradient(const Routing<Scalar>& routing, const Eigen::ArrayXd& d_importance,
                             std::span<std::type_identity_t<Scalar>> d_weight, TokenMask mask = {}) {
  require_equal(std::ssize(d_weight), routing.size(), "add_importance_gradient: d_weight.size()");
  for (Index r = 0; r < routing.size(); ++r) {
    if (is_masked(mask, routing[r].token) || routing.is_dropped(r)) continue;
    d_weight[std::size_t(r)] += Scalar(d_importance(routing[r].expert));
  }
}

}  // namespace moe::inline MOE_TARGET
