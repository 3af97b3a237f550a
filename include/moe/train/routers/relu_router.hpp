/// @file  Gradients of the router without a choice.
#pragma once

#include <cstddef>
#include <span>
#include <type_traits>

#include "moe/core/routing.hpp"
#include "moe/core/tokens.hpp"
#include "moe/core/types.hpp"
#include "moe/routers/relu_router.hpp"
#include "moe/runtime/workers.hpp"
#include "moe/train/routers/detail/logits.hpp"

namespace moe::inline MOE_TARGET {

/// As backward() of LinearTopK. The weights are the logits of those who take part.
template <class Scalar>
void backward(const ReluRouter<Scalar>& router, const Tokens<Scalar>& tokens, const Routing<Scalar>& routing,
              std::span<const std::type_identity_t<Scalar>> d_weight, MatrixRef<Scalar> d_logits, MatrixRef<Scalar> d_x,
              ReluRouter<Scalar>& gradient, Workers& workers) {
  for (std::size_t r = 0; r < routing.token.size(); ++r) d_logits(routing.expert[r], routing.token[r]) += d_weight[r];
  linear_backward<Scalar>(map_of(router.weight()), tokens.x, d_logits, d_x, gradient.weight(), gradient.bias(),
                          workers);
}

}  // namespace moe::inline MOE_TARGET
