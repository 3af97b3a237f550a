/// @file  A gradient has the shape of what it is of, and a tape is that of its layer.
#pragma once

#include <stdexcept>
#include <string>

#include "moe/core/check.hpp"
#include "moe/core/target.hpp"
#include "moe/core/types.hpp"

namespace moe::inline MOE_TARGET {

/// @throws std::invalid_argument naming both shapes unless the gradient has this one.
template <class Gradient>
void require_gradient(const Gradient& gradient, Index rows, Index cols, const char* what) {
  if (gradient.rows() == rows && gradient.cols() == cols) return;
  const auto shape = [](Index r, Index c) { return std::to_string(r) + " × " + std::to_string(c); };
  throw std::invalid_argument(std::string("backward: the gradient of ") + what + " is " +
                              shape(gradient.rows(), gradient.cols()) + ", expected " + shape(rows, cols));
}

/// The same for a parameter, or for what stands for one.
template <class Gradient, class Parameter>
void require_gradient(const Gradient& gradient, const Parameter& parameter, const char* what) {
  require_gradient(gradient, parameter.rows(), parameter.cols(), what);
}

/// @throws std::invalid_argument naming both unless forward() has left so many numbers.
template <class Kept>
void require_tape(const Kept& kept, Index expected) {
  require_equal(Index(kept.size()), expected, "backward: the tape is of another layer, or of none: kept.size()");
}

}  // namespace moe::inline MOE_TARGET
