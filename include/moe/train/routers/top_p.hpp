/// @file  Gradients of the router that takes as many experts as it needs.
#pragma once

#include <cstddef>
#include <span>
#include <type_traits>

#include "moe/core/routing.hpp"
#include "moe/core/types.hpp"
#include "moe/kernels/scores.hpp"
#include "moe/routers/top_p.hpp"
#include "moe/runtime/workers.hpp"
#include "moe/train/routers/detail/scores.hpp"
#include "moe/train/routers/logits_router.hpp"

namespace moe::inline MOE_TARGET {

/// As backward() of TopKChoice. Weights are p = softmax(l), or, renormalised, the softmax of a token's chosen ones.
template <class Scalar, class Gradient>
void backward(const TopPChoice<Scalar>& choice, const ConstMatrixRef<Scalar>& logits, const Routing<Scalar>& routing,
              std::span<const std::type_identity_t<Scalar>> d_weight, MatrixRef<Scalar> d_logits, Gradient&,
              Workers& workers) {
  if (!choice.options().renormalize) {
    return scores_of_routes_backward<Scalar>(Score::softmax, logits, routing, d_weight, d_logits, workers);
  }
  auto p = workers.shared().template matrix<Scalar>(logits.rows(), 1);
  auto d = workers.shared().template matrix<Scalar>(logits.rows(), 1);
  for (std::size_t r = 0; r < routing.token.size();) {
    const Index t = routing.token[r];
    const std::size_t first = r;
    Index count = 0;
    for (; r < routing.token.size() && routing.token[r] == t; ++r, ++count) {
      p(count) = logits(routing.expert[r], t);
      d(count) = d_weight[r];
    }
    softmax(p.col(0).head(count), p.col(0).head(count));
    softmax_backward(p.col(0).head(count), d.col(0).head(count));
    for (Index k = 0; k < count; ++k) d_logits(routing.expert[first + std::size_t(k)], t) += d(k);
  }
}

}  // namespace moe::inline MOE_TARGET
