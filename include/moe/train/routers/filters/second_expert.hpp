/// @file  Gradients of a router whose second experts may be dropped.
#pragma once

#include <span>
#include <type_traits>

#include "moe/core/routing.hpp"
#include "moe/core/tokens.hpp"
#include "moe/core/types.hpp"
#include "moe/routers/filters/second_expert.hpp"
#include "moe/runtime/workers.hpp"

namespace moe::inline MOE_TARGET {

/// The router's own. Routes that were dropped have no gradient; who is dropped is constant.
template <class R, class Gradient, class Scalar = typename R::Scalar>
void backward(const WithSecondExpert<R>& router, const Tokens<Scalar>& tokens, const Routing<Scalar>& routing,
              std::span<const std::type_identity_t<Scalar>> d_weight, MatrixRef<Scalar> d_logits, MatrixRef<Scalar> d_x,
              Gradient& gradient, Workers& workers) {
  backward(router.router(), tokens, routing, d_weight, d_logits, d_x, gradient.router(), workers);
}

}  // namespace moe::inline MOE_TARGET
