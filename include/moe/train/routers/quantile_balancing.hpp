/// @file  Gradients of the router whose selection bias balances the batch at hand.
#pragma once

#include <span>
#include <type_traits>

#include "moe/core/routing.hpp"
#include "moe/core/tokens.hpp"
#include "moe/core/types.hpp"
#include "moe/routers/quantile_balancing.hpp"
#include "moe/runtime/workers.hpp"
#include "moe/train/routers/detail/logits.hpp"
#include "moe/train/routers/top_k.hpp"

namespace moe::inline MOE_TARGET {

/// As backward() of LinearTopK: the balance decides who is chosen, which is constant.
template <class Scalar>
void backward(const QuantileBalanced<Scalar>& router, const Tokens<Scalar>& tokens, const Routing<Scalar>& routing,
              std::span<const std::type_identity_t<Scalar>> d_weight, MatrixRef<Scalar> d_logits, MatrixRef<Scalar> d_x,
              QuantileBalanced<Scalar>& gradient, Workers& workers) {
  backward(router.choice(), logits_of(routing, router.num_experts(), tokens.count()), routing, d_weight, d_logits,
           workers);
  linear_backward<Scalar>(map_of(router.weight()), tokens.x, d_logits, d_x, gradient.weight(), {nullptr, 0}, workers);
}

}  // namespace moe::inline MOE_TARGET
