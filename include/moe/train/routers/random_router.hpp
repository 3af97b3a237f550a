/// @file  Gradients of the router that knows nothing: none.
#pragma once

#include <span>
#include <type_traits>

#include "moe/routers/random_router.hpp"
#include "moe/routing.hpp"
#include "moe/tokens.hpp"
#include "moe/types.hpp"
#include "moe/workers.hpp"

namespace moe::inline MOE_TARGET {

template <class Scalar>
void backward(const RandomRouter<Scalar>&, const Tokens<Scalar>&, const Routing<Scalar>&,
              std::span<const std::type_identity_t<Scalar>>, MatrixRef<Scalar>, MatrixRef<Scalar>,
              RandomRouter<Scalar>&, Workers&) {}

}  // namespace moe::inline MOE_TARGET
