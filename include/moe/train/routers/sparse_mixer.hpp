/// @file  Gradients of the router of Phi-3.5-MoE, in its form for evaluation.
#pragma once

#include <algorithm>
#include <cstddef>
#include <span>
#include <type_traits>

#include "moe/core/routing.hpp"
#include "moe/core/scratch.hpp"
#include "moe/core/tokens.hpp"
#include "moe/core/types.hpp"
#include "moe/routers/detail/logits.hpp"
#include "moe/routers/sparse_mixer.hpp"
#include "moe/runtime/workers.hpp"
#include "moe/train/routers/detail/logits.hpp"
#include "moe/train/routers/detail/scores.hpp"

namespace moe::inline MOE_TARGET {

/// As backward() of LinearTopK: who is taken and who is masked is constant. The paper trains with samples instead.
template <class Scalar>
void backward(const SparseMixer<Scalar>& router, const Tokens<Scalar>& tokens, const Routing<Scalar>& routing,
              std::span<const std::type_identity_t<Scalar>> d_weight, MatrixRef<Scalar> d_logits, MatrixRef<Scalar> d_x,
              SparseMixer<Scalar>& gradient, Workers& workers) {
  using Vector = Eigen::Matrix<Scalar, Eigen::Dynamic, 1>;
  constexpr Index tokens_a_task = 16;
  const Index num_experts = router.num_experts(), top_k = router.top_k();
  const auto logits = logits_of(routing, num_experts, tokens.count());
  workers.for_each_band(tokens.count(), tokens_a_task, [&](Index first, Index last, Scratch& scratch) {
    Eigen::Map<Vector> shares(scratch.matrix<Scalar>(num_experts, 1).data(), num_experts);
    Eigen::Map<Vector> d(scratch.matrix<Scalar>(num_experts, 1).data(), num_experts);
    bool* const taken = scratch.array<bool>(num_experts);
    for (Index t = first; t < last; ++t) {
      std::fill_n(taken, num_experts, false);
      for (Index k = 0; k < top_k; ++k) {
        const auto route = std::size_t(t * top_k + k);
        const Index best = routing.expert[route], place = router.share_out(logits.col(t), taken, best, shares);
        d.setZero();
        d(place) = d_weight[route];
        softmax_backward(shares.head(num_experts - k), d.head(num_experts - k));
        for (Index e = 0, i = 0; e < num_experts; ++e) {
          if (!taken[e]) d_logits(e, t) += d(i++);
        }
        taken[best] = true;
      }
    }
  });
  linear_backward<Scalar>(map_of(router.weight()), tokens.x, d_logits, d_x, gradient.weight(), {nullptr, 0}, workers);
}

}  // namespace moe::inline MOE_TARGET
