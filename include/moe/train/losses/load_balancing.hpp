/// @file  Gradient of the load balancing loss.
#pragma once

#include <cstddef>

#include "moe/core/check.hpp"
#include "moe/core/routing.hpp"
#include "moe/core/scratch.hpp"
#include "moe/core/types.hpp"
#include "moe/kernels/scores.hpp"
#include "moe/losses/load_balancing.hpp"
#include "moe/train/routers/detail/scores.hpp"

namespace moe::inline MOE_TARGET {

/// Adds coefficient · ∂load_balancing_loss(shares)/∂logits, where counts are constants. Shares may be those of more
/// tokens than these, such as of several micro-batches: each adds its part.
/// @param shares    of measure_shares() with the same options
/// @param d_logits  (num_experts × n_tokens), as of MoeLayerTape::logit_gradient()
/// @throws std::invalid_argument if the shares and the logits differ in shape.
template <class Scalar>
void add_load_balancing_gradient(const Routing<Scalar>& routing, const LoadBalancingOptions& options,
                                 const ExpertShares& shares, double coefficient, MatrixRef<Scalar> d_logits) {
  const Index experts = d_logits.rows(), tokens = d_logits.cols();
  require_equal(shares.num_experts(), experts, "add_load_balancing_gradient: shares.num_experts()");
  require_equal(shares.num_sequences(), detail::count_sequences(tokens, options),
                "add_load_balancing_gradient: shares.num_sequences()");
  require_equal(std::ssize(routing.logits), experts * tokens, "add_load_balancing_gradient: routing.logits.size()");
  const auto logits = logits_of(routing, experts, tokens);
  Vector<Scalar> p(experts), d(experts);
  Matrix<Scalar> slope(experts, shares.num_sequences());  // ∂L/∂p
  for (Index s = 0; s < slope.cols(); ++s) {
    slope.col(s) =
        (coefficient * load_balancing_slope(shares, s) * shares.routes.col(s).matrix()).template cast<Scalar>();
  }
  for (Index t = 0; t < tokens; ++t) {
    if (is_masked(options.mask, t)) continue;
    const Index sequence = detail::sequence_of(t, options);
    probabilities(options.score, logits.col(t), p);
    d = slope.col(sequence);
    probabilities_backward(options.score, logits.col(t), p, d);
    d_logits.col(t) += d;
  }
}

}  // namespace moe::inline MOE_TARGET
