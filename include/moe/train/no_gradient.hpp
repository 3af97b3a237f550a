/// @file  Stands where a gradient would, of what does not learn.
#pragma once

#include "moe/core/types.hpp"

namespace moe::inline MOE_TARGET {

/// A backward pass that finds it computes no gradient of parameters, and goes on to those of x and of weights of
/// routes. Every part of it is one too, or empty; what else a gradient has is asked for only if it learns<Gradient>.
template <class Scalar>
struct NoGradient {
  /// Empty, or this once more.
  /// @{
  Eigen::Map<Weight<Scalar>> weight() const { return {nullptr, 0, 0}; }
  Eigen::Map<Eigen::Matrix<Scalar, Eigen::Dynamic, 1>> bias() const { return {nullptr, 0}; }
  Eigen::Map<Eigen::Matrix<Scalar, Eigen::Dynamic, 1>> gain() const { return {nullptr, 0}; }
  NoGradient& operator[](Index) { return *this; }
  NoGradient& in() { return *this; }
  NoGradient& out() { return *this; }
  NoGradient& norm() { return *this; }
  NoGradient& experts() { return *this; }
  NoGradient& router() { return *this; }
  NoGradient& logits() { return *this; }
  NoGradient& choice() { return *this; }
  NoGradient& unshaped() { return *this; }
  /// @}
};

/// Whether gradients of parameters are wanted: Gradient is no NoGradient.
template <class Gradient>
inline constexpr bool learns = true;
template <class Scalar>
inline constexpr bool learns<NoGradient<Scalar>> = false;

}  // namespace moe::inline MOE_TARGET
