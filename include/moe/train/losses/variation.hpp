/// @file  Gradient of the squared coefficient of variation.
#pragma once

#include <algorithm>

#include "moe/core/types.hpp"
#include "moe/kernels/multiply_add.hpp"
#include "moe/kernels/vectors.hpp"
#include "moe/losses/variation.hpp"

namespace moe::inline MOE_TARGET {

/// ∂squared_variation(values)/∂values, with m the mean, V the variance of n values, and D = m² + epsilon:
///   2 (v_i − m) / ((n − 1) D) − 2 V m / (n D²)
template <class Values>
Eigen::ArrayXd squared_variation_gradient(const Values& values, const VariationOptions& options = {}) {
  const auto n = double(values.size());
  if (values.size() == 0) return {};
  const Eigen::ArrayXd v = values.template cast<double>();
  const double mean = v.sum() / n, degrees = std::max(1.0, options.sample ? n - 1 : n);
  const Eigen::ArrayXd off = v - mean;
  const double variance = kernels::dot(off, off) / degrees,
               divisor = kernels::multiply_add(mean, mean, options.epsilon);
  if (variance == 0) return Eigen::ArrayXd::Zero(values.size());
  return 2 * off / (degrees * divisor) - 2 * variance * mean / (n * divisor * divisor);
}

}  // namespace moe::inline MOE_TARGET
