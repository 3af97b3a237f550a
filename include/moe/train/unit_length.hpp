/// @file  Gradients through a vector's direction.
#pragma once

#include <type_traits>

#include "moe/types.hpp"

namespace moe {

/// Through u = v / ‖v‖: turns ∂L/∂u into ∂L/∂v = (∂L/∂u − u (u·∂L/∂u)) / ‖v‖; 0 where v is.
/// @param norm  ‖v‖, as to_length() returns it
template <class U, class Gradient, class Scalar = typename U::Scalar>
void unit_length_backward(const U& u, std::type_identity_t<Scalar> norm, Gradient&& d) {
  if (norm == 0) return d.setZero(), void();
  const Scalar along = u.dot(d);
  d = (d - along * u) / norm;
}

}  // namespace moe
