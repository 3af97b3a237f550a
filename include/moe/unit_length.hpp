/// @file  A vector's direction.
#pragma once

#include <type_traits>

#include "moe/types.hpp"

namespace moe {

/// v ← length · v / ‖v‖, for vectors of any finite length, however small or large; 0 stays 0.
/// @return ‖v‖ as it was
template <class V, class Scalar = typename std::remove_cvref_t<V>::Scalar>
Scalar to_length(V&& v, std::type_identity_t<Scalar> length) {
  const Scalar largest = v.cwiseAbs().template maxCoeff<Eigen::PropagateNaN>();
  if (largest == 0) return 0;
  v /= largest;  // taken out first, so that no square over- or underflows
  const Scalar norm = v.norm();
  v *= length / norm;
  return largest * norm;
}

}  // namespace moe
