/// @file  Gradients of the linear top-k router.
#pragma once

#include <span>
#include <type_traits>

#include "moe/core/routing.hpp"
#include "moe/core/tokens.hpp"
#include "moe/core/types.hpp"
#include "moe/routers/linear_top_k.hpp"
#include "moe/runtime/workers.hpp"
#include "moe/train/routers/detail/logits.hpp"
#include "moe/train/routers/top_k.hpp"

namespace moe::inline MOE_TARGET {

/// Gradients of L through the weights of the routes; which they are is constant, and the selection bias has none.
/// @param routing   as router.route() wrote it for these tokens
/// @param d_weight  ∂L/∂weight of each route; 0 for one that was dropped
/// @param d_logits  (num_experts × n_tokens) ∂L/∂logits by other ways, such as losses; its own part is added
/// @param d_x       (d_model × n_tokens) ∂L/∂x; added to
/// @param gradient  ∂L/∂ each parameter, of a router of the same shape, added to; or NoGradient
template <class Scalar, class Gradient>
void backward(const LinearTopK<Scalar>& router, const Tokens<Scalar>& tokens, const Routing<Scalar>& routing,
              std::span<const std::type_identity_t<Scalar>> d_weight, MatrixRef<Scalar> d_logits, MatrixRef<Scalar> d_x,
              Gradient& gradient, Workers& workers) {
  backward(router.choice(), logits_of(routing, router.num_experts(), tokens.count()), routing, d_weight, d_logits,
           workers);
  linear_backward<Scalar>(map_of(router.weight()), tokens.x, d_logits, d_x, gradient.weight(), gradient.bias(),
                          workers);
}

}  // namespace moe::inline MOE_TARGET
