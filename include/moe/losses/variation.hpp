/// @file  How uneven numbers are, whatever their scale.
#pragma once

#include <algorithm>

#include "moe/core/types.hpp"
#include "moe/kernels/multiply_add.hpp"

namespace moe::inline MOE_TARGET {

/// The defaults are those of most implementations of Shazeer et al.
struct VariationOptions {
  bool sample = true;      // the variance divides by n − 1; else by n
  double epsilon = 1e-10;  // added to the squared mean
};

/// The squared coefficient of variation, variance / (mean² + epsilon): 0 where all are equal, or there is but one or
/// none. Of the importance or the load of experts it is a loss: Shazeer et al. 2017, §4 and appendix A,
/// arXiv:1701.06538. It is never computed by way of the deviation, whose gradient is 0 / 0 where all are equal.
/// @param values  (n)
template <class Values>
double squared_variation(const Values& values, const VariationOptions& options = {}) {
  if (values.size() == 0) return 0;
  const auto n = double(values.size());
  const double mean = values.template cast<double>().sum() / n;
  double squares = 0;
  for (Index i = 0; i < values.size(); ++i) {
    const double off = double(values(i)) - mean;
    squares = kernels::multiply_add(off, off, squares);
  }
  const double variance = squares / std::max(1.0, options.sample ? n - 1 : n);
  return variance == 0 ? 0 : variance / kernels::multiply_add(mean, mean, options.epsilon);
}

}  // namespace moe::inline MOE_TARGET
