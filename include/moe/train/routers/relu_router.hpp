/// @file  Gradients of the router without a choice.
#pragma once

#include <cstddef>
#include <span>
#include <type_traits>

#include "moe/core/routing.hpp"
#include "moe/core/types.hpp"
#include "moe/routers/relu_router.hpp"
#include "moe/runtime/workers.hpp"
#include "moe/train/routers/logits_router.hpp"

namespace moe::inline MOE_TARGET {

/// As backward() of TopKChoice. The weights are the logits of those who take part.
template <class Scalar, class Gradient>
void backward(const ReluChoice<Scalar>&, const ConstMatrixRef<Scalar>&, const Routing<Scalar>& routing,
              std::span<const std::type_identity_t<Scalar>> d_weight, MatrixRef<Scalar> d_logits, Gradient&, Workers&) {
  for (std::size_t r = 0; r < routing.token.size(); ++r) d_logits(routing.expert[r], routing.token[r]) += d_weight[r];
}

}  // namespace moe::inline MOE_TARGET
