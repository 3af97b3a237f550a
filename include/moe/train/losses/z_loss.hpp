/// @file  Gradient of the z-loss.
#pragma once

#include "moe/core/check.hpp"
#include "moe/core/token_mask.hpp"
#include "moe/core/types.hpp"
#include "moe/losses/z_loss.hpp"

namespace moe::inline MOE_TARGET {

/// Adds coefficient · ∂z_loss(logits)/∂logits:  2 z_t / n · softmax(l_t), with z_t = log Σ exp(l_t).
/// @param logits, d_logits  (num_experts × n_tokens)
/// @throws std::invalid_argument if the shapes differ, or the mask has another length.
template <class Logits, class Scalar = typename Logits::Scalar>
void add_z_loss_gradient(const Logits& logits, double coefficient, MatrixRef<Scalar> d_logits, TokenMask mask = {}) {
  require_equal(d_logits.rows(), logits.rows(), "add_z_loss_gradient: d_logits.rows()");
  require_equal(d_logits.cols(), logits.cols(), "add_z_loss_gradient: d_logits.cols()");
  require_mask(mask, logits.cols(), "add_z_loss_gradient");
  Index tokens = 0;
  for (Index t = 0; t < logits.cols(); ++t) tokens += !is_masked(mask, t);
  for (Index t = 0; t < logits.cols(); ++t) {
    if (is_masked(mask, t)) continue;
    const double z = log_sum_exp(logits.col(t));
    d_logits.col(t) +=
        (2 * coefficient * z / double(tokens) * (logits.col(t).template cast<double>().array() - z).exp())
            .matrix()
            .template cast<Scalar>();
  }
}

}  // namespace moe::inline MOE_TARGET
