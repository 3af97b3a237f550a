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
/// finite.
template <class Scalar>
double norm_to_take(const std::vector<Parameter<Scalar>>& gradients, const TakeOptions& options, ExecutorRef executor) {
  require_max_norm(options.max_norm, "take");
  const double norm = options.norm ? *options.norm : gradient_norm(gradients, executor);
  if (std::isfinite(norm)) return norm;
  require_finite(gradients, executor);
  require(!options.norm, "take: norm is " + std::to_string(norm) + ", expected a finite one");
  return norm;  // the squares of doubles may not be, where these are
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
