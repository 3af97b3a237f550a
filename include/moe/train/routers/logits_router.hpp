/// @file  Gradients of a router that computes logits, then chooses by them.
#pragma once

#include <span>
#include <type_traits>

#include "moe/core/routing.hpp"
#include "moe/core/tokens.hpp"
#include "moe/core/types.hpp"
#include "moe/routers/detail/logits.hpp"
#include "moe/routers/logits_router.hpp"
#include "moe/runtime/workers.hpp"
#include "moe/train/gradient_shape.hpp"
#include "moe/train/routers/linear_logits.hpp"
#include "moe/train/routers/top_k.hpp"

namespace moe::inline MOE_TARGET {

/// Gradients of L through the weights of the routes; which they are is constant, and the selection bias has none. Its
/// parts have, where gradient.logits() and gradient.choice() may be NoGradient:
///   backward(choice, logits, routing, d_weight, d_logits, gradient, workers)   adds to d_logits
///   backward(logits part, tokens, logits, d_logits, d_x, gradient, workers)    adds to d_x
/// @param routing   as router.route() wrote it for these tokens
/// @param d_weight  ∂L/∂weight of each route; 0 for one that was dropped
/// @param d_logits  (num_experts × n_tokens) ∂L/∂logits by other ways, such as losses; its own part is added
/// @param d_x       (d_model × n_tokens) ∂L/∂x; added to
/// @param gradient  ∂L/∂ each parameter, of a router of the same shape, added to; or NoGradient
template <class Logits, class Choice, class Gradient, class Scalar = typename Logits::Scalar>
void backward(const LogitsRouter<Logits, Choice>& router, const Tokens<Scalar>& tokens, const Routing<Scalar>& routing,
              std::span<const std::type_identity_t<Scalar>> d_weight, MatrixRef<Scalar> d_logits, MatrixRef<Scalar> d_x,
              Gradient& gradient, Workers& workers) {
  require_tape(routing.logits, router.logits().num_experts() * tokens.count());
  const auto logits = logits_of(routing, router.logits().num_experts(), tokens.count());
  backward(router.choice(), logits, routing, d_weight, d_logits, gradient.choice(), workers);
  backward(router.logits(), tokens, logits, d_logits, d_x, gradient.logits(), workers);
}

}  // namespace moe::inline MOE_TARGET
