/// @file  How an optimiser takes gradients that nobody reads after it.
#pragma once

#include <cmath>
#include <limits>
#include <optional>
#include <string>
#include <vector>

#include "moe/core/check.hpp"
#include "moe/core/parameters.hpp"
#include "moe/runtime/workers.hpp"
#include "moe/train/optimisers/clip_gradients.hpp"
#include "moe/train/optimisers/require_alike.hpp"

namespace moe::inline MOE_TARGET {

/// Of AdamW::take() and Sgd::take().
struct TakeOptions {
  double max_norm = std::numeric_limits<double>::infinity();  // as of clip_gradients()
  /// ‖g‖₂ of all that are clipped together, where these gradients are a part of them; else it is found.
  std::optional<double> norm = {};
};

namespace detail {

/// ‖g‖₂ as take() clips by it.
/// @throws std::invalid_argument naming a gradient that is not finite, or unless max_norm > 0 and a given norm is
/// finite and no less than that of these gradients.
template <class Scalar>
double norm_to_take(const std::vector<Parameter<Scalar>>& gradients, const TakeOptions& options, ExecutorRef executor) {
  require_max_norm(options.max_norm, "take");
  const double its = gradient_norm(gradients, executor);
  if (!std::isfinite(its)) require_finite(gradients, executor);  // the squares of doubles may not be, where these are
  if (!options.norm) return its;
  const double norm = *options.norm, rounding = 1e-5;  // of a sum in any order, by any number of ranks
  if (std::isfinite(norm) && its <= norm * (1 + rounding)) return norm;
  require(false, "take: norm is " + std::to_string(norm) + ", expected a finite one of at least " +
                     std::to_string(its) + ", that of these gradients alone: give that of all, as they are now");
  return norm;
}

/// update(what clips the gradients) where they can be taken.
/// @return their norm
template <class Scalar, class Update>
double take(const std::vector<Parameter<Scalar>>& parameters, const std::vector<Parameter<Scalar>>& gradients,
            const TakeOptions& options, ExecutorRef executor, const Update& update) {
  require_alike(parameters, gradients);
  const double norm = norm_to_take(gradients, options, executor);
  update(clip_factor<Scalar>(norm, options.max_norm));
  return norm;
}

}  // namespace detail

}  // namespace moe::inline MOE_TARGET
