/// @file  How the learning rate moves from step to step.
#pragma once

#include <algorithm>
#include <cmath>
#include <numbers>

#include "moe/core/types.hpp"

namespace moe::inline MOE_TARGET {

/// Rises in a line to 1 over `warm_up` steps, then falls along half a cosine to `lowest` at step `steps`, and stays
/// there. A factor for the learning rate of step 0, 1, …
/// Loshchilov & Hutter 2017, "SGDR", arXiv:1608.03983, eq. 5, without restarts.
struct WarmUpCosine {
  Index warm_up = 0;
  Index steps = 1;
  double lowest = 0;

  /// The factor of a step, 0 … 1.
  double operator()(Index step) const {
    if (step < warm_up) return double(step + 1) / double(warm_up);
    const double done = std::min(1.0, double(step - warm_up) / double(std::max<Index>(1, steps - warm_up)));
    return lowest + (1 - lowest) * (1 + std::cos(std::numbers::pi * done)) / 2;
  }
};

}  // namespace moe::inline MOE_TARGET
