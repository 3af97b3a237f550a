/// @file  Gradients through a vector's direction.
#pragma once

#include <type_traits>

#include "moe/core/scratch.hpp"
#include "moe/core/types.hpp"
#include "moe/kernels/vectors.hpp"
#include "moe/routers/detail/unit_length.hpp"
#include "moe/runtime/workers.hpp"

namespace moe::inline MOE_TARGET {

/// Through u = v / ‖v‖: turns ∂L/∂u into ∂L/∂v = (∂L/∂u − u (u·∂L/∂u)) / ‖v‖; 0 where v is.
/// @param norm  ‖v‖, as to_length() returns it
template <class U, class Gradient, class Scalar = typename U::Scalar>
void unit_length_backward(const U& u, std::type_identity_t<Scalar> norm, Gradient&& d) {
  if (norm == 0) {
    d.setZero();
  } else {
    kernels::add_scaled(-kernels::dot(u, d), u, d);
    d /= norm;
  }
}

/// The same for each column.
template <class Scalar>
void directions_backward(const Directions<Scalar>& u, MatrixRef<Scalar> d, Workers& workers) {
  workers.for_each_band(d.cols(), 16, [&](Index first, Index last, Scratch&) {
    for (Index c = first; c < last; ++c) unit_length_backward(u.columns.col(c), u.length[c], d.col(c));
  });
}

}  // namespace moe::inline MOE_TARGET
