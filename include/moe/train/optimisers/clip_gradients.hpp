/// @file  Keeps a step from being too large.
#pragma once

#include <cmath>
#include <vector>

#include "moe/check.hpp"
#include "moe/parameters.hpp"

namespace moe {

/// Multiplies all gradients by min(1, max_norm / ‖g‖₂), and returns ‖g‖₂ of all of them together as it was before.
/// Pascanu et al. 2013, "On the difficulty of training recurrent neural networks", arXiv:1211.5063, algorithm 1.
/// @throws std::invalid_argument unless max_norm > 0.
template <class Scalar>
double clip_gradients(const std::vector<Parameter<Scalar>>& gradients, double max_norm) {
  require(max_norm > 0, "clip_gradients: max_norm is " + std::to_string(max_norm) + ", expected more than 0");
  double squares = 0;
  for (const auto& gradient : gradients) squares += gradient.array().template cast<double>().square().sum();
  const double norm = std::sqrt(squares);
  if (norm > max_norm) {
    for (const auto& gradient : gradients) gradient.array() *= Scalar(max_norm / norm);
  }
  return norm;
}

}  // namespace moe
