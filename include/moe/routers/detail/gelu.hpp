/// @file  The activation of routers that have hidden layers.
#pragma once

#include <algorithm>
#include <cmath>
#include <type_traits>

#include "moe/core/types.hpp"
#include "moe/kernels/elementary.hpp"

namespace moe::inline MOE_TARGET::detail {

/// gelu(x) = x·Φ(x) of each number, with the same bits wherever it stands; 0 at −∞.
template <class X>
auto gelu_of(const Eigen::ArrayBase<X>& x) {
  using Scalar = typename X::Scalar;
  if constexpr (std::is_same_v<Scalar, float>) {
    return x.derived().unaryExpr(kernels::OnRegisters<kernels::GeluOf>());
  } else {
    return x.derived().unaryExpr([](Scalar v) {
      v = std::max(v, Scalar(-40));  // where it is 0; a NaN stays one
      return Scalar(0.5) * v * (Scalar(1) + std::erf(v * Scalar(0.70710678118654752440)));
    });
  }
}

}  // namespace moe::inline MOE_TARGET::detail
