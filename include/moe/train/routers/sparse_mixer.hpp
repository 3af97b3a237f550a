/// @file  Gradients of the router of Phi-3.5-MoE, in its form for evaluation.
#pragma once

#include <algorithm>
#include <cstddef>
#include <span>
#include <type_traits>

#include "moe/core/routing.hpp"
#include "moe/core/scratch.hpp"
#include "moe/core/types.hpp"
#include "moe/routers/sparse_mixer.hpp"
#include "moe/runtime/workers.hpp"
#include "moe/train/routers/detail/scores.hpp"
#include "moe/train/routers/logits_router.hpp"

namespace moe::inline MOE_TARGET {

/// As backward() of TopKChoice: who is taken and who is masked is constant. The paper trains with samples instead.
template <class Scalar, class Gradient>
void backward(const SparseMixerChoice<Scalar>& choice, const ConstMatrixRef<Scalar>& logits,
              const Routing<Scalar>& routing, std::span<const std::type_identity_t<Scalar>> d_weight,
              MatrixRef<Scalar> d_logits, Gradient&, Workers& workers) {
  constexpr Index tokens_a_task = 16;
  const Index num_experts = logits.rows(), top_k = choice.top_k();
  workers.for_each_band(logits.cols(), tokens_a_task, [&](Index first, Index last, Scratch& scratch) {
    Eigen::Map<Vector<Scalar>> shares(scratch.matrix<Scalar>(num_experts, 1).data(), num_experts);
    Eigen::Map<Vector<Scalar>> d(scratch.matrix<Scalar>(num_experts, 1).data(), num_experts);
    bool* const taken = scratch.array<bool>(num_experts);
    for (Index t = first; t < last; ++t) {
      std::fill_n(taken, num_experts, false);
      for (Index k = 0; k < top_k; ++k) {
        const auto route = std::size_t(t * top_k + k);
        const Index best = routing.expert[route], place = choice.share_out(logits.col(t), taken, best, shares);
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
}

}  // namespace moe::inline MOE_TARGET
