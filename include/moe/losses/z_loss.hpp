/// @file  The auxiliary loss that keeps a router's logits small.
#pragma once

#include <cmath>

#include "moe/core/token_mask.hpp"
#include "moe/core/types.hpp"
#include "moe/kernels/multiply_add.hpp"

namespace moe::inline MOE_TARGET {

/// log Σ_i exp(l_i) in double, without overflow: +∞ if one of them is, −∞ if all are.
template <class Logits>
double log_sum_exp(const Logits& logits) {
  const double highest = double(logits.template maxCoeff<Eigen::PropagateNaN>());
  if (!std::isfinite(highest)) return highest;
  return highest + std::log((logits.template cast<double>().array() - highest).exp().sum());
}

/// Mean over the tokens that count of (log Σ_e exp(l_e))²; 0 if none does. The caller multiplies it by a coefficient:
/// 1e-3 in Zoph et al. 2022, "ST-MoE", §3.3, arXiv:2202.08906.
/// @param logits  (num_experts × n_tokens), num_experts ≥ 1
/// @throws std::invalid_argument if the mask has another length.
template <class Logits>
double z_loss(const Logits& logits, TokenMask mask = {}) {
  require_mask(mask, logits.cols(), "z_loss");
  double sum = 0;
  Index tokens = 0;
  for (Index t = 0; t < logits.cols(); ++t) {
    if (is_masked(mask, t)) continue;
    const double z = log_sum_exp(logits.col(t));
    sum = kernels::multiply_add(z, z, sum);
    ++tokens;
  }
  return tokens > 0 ? sum / double(tokens) : 0;
}

}  // namespace moe::inline MOE_TARGET
