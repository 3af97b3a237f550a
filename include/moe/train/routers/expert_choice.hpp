/// @file  Gradients of the router whose experts choose their tokens.
#pragma once

#include <span>
#include <type_traits>

#include "moe/core/routing.hpp"
#include "moe/core/tokens.hpp"
#include "moe/core/types.hpp"
#include "moe/routers/expert_choice.hpp"
#include "moe/runtime/workers.hpp"
#include "moe/train/routers/detail/logits.hpp"
#include "moe/train/routers/detail/scores.hpp"

namespace moe::inline MOE_TARGET {

/// As backward() of LinearTopK.
template <class Scalar, class Gradient>
void backward(const ExpertChoice<Scalar>& router, const Tokens<Scalar>& tokens, const Routing<Scalar>& routing,
              std::span<const std::type_identity_t<Scalar>> d_weight, MatrixRef<Scalar> d_logits, MatrixRef<Scalar> d_x,
              Gradient& gradient, Workers& workers) {
  scores_of_routes_backward<Scalar>(Score::softmax, logits_of(routing, router.num_experts(), tokens.count()), routing,
                                    d_weight, d_logits, workers);
  linear_backward<Scalar>(map_of(router.weight()), tokens.x, d_logits, d_x, gradient.weight(), {nullptr, 0}, workers);
}

}  // namespace moe::inline MOE_TARGET
