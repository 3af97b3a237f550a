/// @file  Gradients of the router that knows nothing: none.
#pragma once

#include <span>
#include <type_traits>

#include "moe/core/routing.hpp"
#include "moe/core/tokens.hpp"
#include "moe/core/types.hpp"
#include "moe/routers/random_router.hpp"
#include "moe/runtime/workers.hpp"

namespace moe::inline MOE_TARGET {

/// Nothing: its choice and its weights depend on no number.
template <class Scalar, class Gradient>
void backward(const RandomRouter<Scalar>&, const Tokens<Scalar>&, const Routing<Scalar>&,
              std::span<const std::type_identity_t<Scalar>>, MatrixRef<Scalar>, MatrixRef<Scalar>, Gradient&,
              Workers&) {}

}  // namespace moe::inline MOE_TARGET
