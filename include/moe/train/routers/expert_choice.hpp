/// @file  Gradients of the router whose experts choose their tokens.
#pragma once

#include <span>
#include <type_traits>

#include "moe/core/routing.hpp"
#include "moe/core/types.hpp"
#include "moe/routers/expert_choice.hpp"
#include "moe/runtime/workers.hpp"
#include "moe/train/routers/detail/scores.hpp"
#include "moe/train/routers/logits_router.hpp"

namespace moe::inline MOE_TARGET {

/// As backward() of TopKChoice.
template <class Scalar, class Gradient>
void backward(const ChoiceByExperts<Scalar>&, const ConstMatrixRef<Scalar>& logits, const Routing<Scalar>& routing,
              std::span<const std::type_identity_t<Scalar>> d_weight, MatrixRef<Scalar> d_logits, Gradient&,
              Workers& workers) {
  scores_of_routes_backward<Scalar>(Score::softmax, logits, routing, d_weight, d_logits, workers);
}

}  // namespace moe::inline MOE_TARGET
