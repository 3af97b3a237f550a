/// @file  How many tokens each expert of a noisy router can expect, as a smooth function of the logits.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include "moe/core/check.hpp"
#include "moe/core/scratch.hpp"
#include "moe/core/token_mask.hpp"
#include "moe/core/types.hpp"
#include "moe/routers/detail/best_k.hpp"

namespace moe::inline MOE_TARGET {

/// What a noisy router chose from, all (num_experts × n_tokens). Views: what they are made of must live on.
template <class Scalar>
struct NoisyChoice {
  ConstMatrixRef<Scalar> clean;   // logits without noise
  ConstMatrixRef<Scalar> noisy;   // and with it
  ConstMatrixRef<Scalar> ranked;  // whose top_k-th largest is the threshold: `noisy`, or a monotone function of it
  ConstMatrixRef<Scalar> stddev;  // of the noise, ≥ 0
};

/// The expert whose `ranked` score another one has to beat for being chosen.
enum class LoadThreshold {
  of_others,  ///< the top_k-th largest of the other experts: Shazeer et al.
  of_all,     ///< the top_k-th largest, be it its own: Tutel
};

/// What a load is the expectation of.
struct SmoothLoadOptions {
  Index top_k = 1;
  LoadThreshold threshold = LoadThreshold::of_others;
  TokenMask mask = {};  // (n_tokens)
};

namespace detail {

/// The threshold of one expert: an index into `best`, the experts by descending `ranked`; −1 if it cannot fail.
/// Of the others: if it is among the top_k itself, the one behind them is the top_k-th of the others.
template <class Scalar>
Index threshold_of(Index expert, Index token, const NoisyChoice<Scalar>& choice, const SmoothLoadOptions& options,
                   const BestK<Scalar>& best) {
  const Index last = options.top_k - 1, next = options.top_k;
  if (options.threshold == LoadThreshold::of_all) return last;
  if (next == best.size()) return -1;
  return choice.noisy(expert, token) > choice.ranked(best.items()[next], token) ? next : last;
}

/// Φ(x), the standard normal distribution.
inline double normal_cdf(double x) { return std::erfc(-x / std::sqrt(2.0)) / 2; }

/// How likely an expert is among the chosen. To be as good as its threshold is no preference, even without noise.
template <class Scalar>
double probability_of(Index expert, Index token, const NoisyChoice<Scalar>& choice, const SmoothLoadOptions& options,
                      const BestK<Scalar>& best) {
  const auto clean = double(choice.clean(expert, token)), noisy = double(choice.noisy(expert, token));
  const auto stddev = double(choice.stddev(expert, token));
  if (std::isnan(clean) || std::isnan(noisy) || std::isnan(stddev)) return std::numeric_limits<double>::quiet_NaN();
  const Index place = threshold_of(expert, token, choice, options, best);
  if (place < 0) return 1;
  const auto threshold = double(choice.ranked(best.items()[place], token));
  if (clean == threshold) return 0.5;
  return normal_cdf((clean - threshold) / stddev);
}

}  // namespace detail

/// load_e = Σ_t Φ((clean_e − threshold_e) / stddev_e): how likely e is chosen if its noise were drawn again and that of
/// the others stayed. It is 1 where there are not top_k others, ½ where clean and threshold are equal. A NaN that a
/// probability depends on shows in it.
///
/// Shazeer et al. 2017, appendix A, arXiv:1701.06538: `clean`, `noisy` and the deviation of noisy top-k gating, with
/// `ranked` the same as `noisy`. Some implementations rank by the softmax of `noisy`, or (Tutel) take `clean` from it.
/// @param load     (num_experts) resized and written
/// @param scratch  for intermediate results
/// @throws std::invalid_argument if the shapes differ, unless 1 ≤ top_k ≤ num_experts, or if the mask has another
/// length.
template <class Scalar>
void measure_smooth_load(const NoisyChoice<Scalar>& choice, const SmoothLoadOptions& options, Eigen::ArrayXd& load,
                         Scratch& scratch) {
  const Index num_experts = choice.clean.rows(), num_tokens = choice.clean.cols();
  for (const auto* other : {&choice.noisy, &choice.ranked, &choice.stddev}) {
    require_equal(other->rows(), num_experts, "smooth_load: rows() of noisy, ranked or stddev");
    require_equal(other->cols(), num_tokens, "smooth_load: cols() of noisy, ranked or stddev");
  }
  require_between(1, options.top_k, num_experts, "smooth_load: top_k");
  require_mask(options.mask, num_tokens, "smooth_load");

  BestK<Scalar> best(scratch, std::min(num_experts, options.top_k + 1));
  load.setZero(num_experts);
  for (Index t = 0; t < num_tokens; ++t) {
    if (is_masked(options.mask, t)) continue;
    best.clear();
    for (Index e = 0; e < num_experts; ++e) best.offer(e, choice.ranked(e, t));
    for (Index e = 0; e < num_experts; ++e) load(e) += detail::probability_of(e, t, choice, options, best);
  }
}

}  // namespace moe::inline MOE_TARGET
