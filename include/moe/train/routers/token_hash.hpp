/// @file  Gradients of the router that looks experts up.
#pragma once

#include <span>
#include <type_traits>

#include "moe/core/routing.hpp"
#include "moe/core/tokens.hpp"
#include "moe/core/types.hpp"
#include "moe/routers/token_hash.hpp"
#include "moe/runtime/workers.hpp"
#include "moe/train/routers/detail/logits.hpp"
#include "moe/train/routers/top_k.hpp"

namespace moe::inline MOE_TARGET {

/// As backward() of LinearTopK. Where each expert counts for 1 / top_k there is nothing to learn.
template <class Scalar>
void backward(const TokenHash<Scalar>& router, const Tokens<Scalar>& tokens, const Routing<Scalar>& routing,
              std::span<const std::type_identity_t<Scalar>> d_weight, MatrixRef<Scalar> d_logits, MatrixRef<Scalar> d_x,
              TokenHash<Scalar>& gradient, Workers& workers) {
  if (router.weight().size() == 0) return;
  backward(router.choice(), logits_of(routing, router.num_experts(), tokens.count()), routing, d_weight, d_logits,
           workers);
  linear_backward<Scalar>(map_of(router.weight()), tokens.x, d_logits, d_x, gradient.weight(), gradient.bias(),
                          workers);
}

}  // namespace moe::inline MOE_TARGET
