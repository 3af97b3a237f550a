/// @file  Gradient of the load that a noisy router can expect.
#pragma once

#include <algorithm>
#include <cmath>
#include <numbers>

#include "moe/core/check.hpp"
#include "moe/core/scratch.hpp"
#include "moe/core/types.hpp"
#include "moe/losses/smooth_load.hpp"
#include "moe/routers/detail/best_k.hpp"

namespace moe::inline MOE_TARGET {

/// Through load_e = Σ_t Φ(z_te), z = (clean − threshold) / stddev: which expert sets a threshold is constant, its score
/// is not.  ∂Φ(z) = φ(z)/stddev · (∂clean − ∂threshold − z·∂stddev). As measure_smooth_load(), for the same options.
/// @param d_load                      (num_experts) ∂L/∂load
/// @param d_clean, d_ranked, d_stddev (num_experts × n_tokens) added to
/// @throws std::invalid_argument if a shape differs.
template <class Scalar>
void add_smooth_load_gradient(const NoisyChoice<Scalar>& choice, const SmoothLoadOptions& options,
                              const Eigen::ArrayXd& d_load, MatrixRef<Scalar> d_clean, MatrixRef<Scalar> d_ranked,
                              MatrixRef<Scalar> d_stddev, Scratch& scratch) {
  const Index num_experts = choice.clean.rows(), num_tokens = choice.clean.cols();
  require_equal(d_load.size(), num_experts, "add_smooth_load_gradient: d_load.size()");
  for (const auto* d : {&d_clean, &d_ranked, &d_stddev}) {
    require_equal(d->rows(), num_experts, "add_smooth_load_gradient: rows() of d_clean, d_ranked or d_stddev");
    require_equal(d->cols(), num_tokens, "add_smooth_load_gradient: cols() of d_clean, d_ranked or d_stddev");
  }
  BestK<Scalar> best(scratch, std::min(num_experts, options.top_k + 1));
  for (Index t = 0; t < num_tokens; ++t) {
    if (is_masked(options.mask, t)) continue;
    best.clear();
    for (Index e = 0; e < num_experts; ++e) best.offer(e, choice.ranked(e, t));
    for (Index e = 0; e < num_experts; ++e) {
      const Index place = detail::threshold_of(e, t, choice, options, best);
      if (place < 0) continue;
      const Index rival = best.items()[place];
      const auto stddev = double(choice.stddev(e, t));
      if (stddev == 0) continue;  // a step: flat but where it jumps
      const double z = (double(choice.clean(e, t)) - double(choice.ranked(rival, t))) / stddev;
      const double density = std::exp(-z * z / 2) * std::numbers::inv_sqrtpi / std::numbers::sqrt2;
      const double d = d_load(e) * density / stddev;
      d_clean(e, t) += Scalar(d);
      d_ranked(rival, t) -= Scalar(d);
      d_stddev(e, t) -= Scalar(d * z);
    }
  }
}

}  // namespace moe::inline MOE_TARGET
