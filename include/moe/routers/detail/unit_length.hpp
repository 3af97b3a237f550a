/// @file  The direction of a vector.
#pragma once

#include <cmath>
#include <type_traits>

#include "moe/core/scratch.hpp"
#include "moe/core/types.hpp"
#include "moe/kernels/vectors.hpp"
#include "moe/runtime/workers.hpp"

namespace moe::inline MOE_TARGET {

/// v ← length · v / ‖v‖, for vectors of any finite length, however small or large; 0 stays 0.
/// @return ‖v‖ as it was
template <class V, class Scalar = typename std::remove_cvref_t<V>::Scalar>
Scalar to_length(V&& v, std::type_identity_t<Scalar> length) {
  const Scalar largest = v.cwiseAbs().template maxCoeff<Eigen::PropagateNaN>();
  if (largest == 0) return 0;
  v /= largest;  // taken out first, so that no square over- or underflows
  const Scalar norm = std::sqrt(kernels::dot(v, v));
  v *= length / norm;
  return largest * norm;
}

/// Columns of length 1, or 0, and how long they were.
template <class Scalar>
struct Directions {
  Eigen::Map<Matrix<Scalar>, Eigen::Aligned64> columns;
  Scalar* length;

  /// The same memory as rows: (columns.cols() × columns.rows()).
  WeightMap<Scalar> rows() const {
    return {columns.data(), columns.cols(), columns.rows(), Eigen::OuterStride<>(columns.rows())};
  }
};

/// Brings each column of v to length 1.
/// @param v  in memory of the workers
template <class Scalar>
Directions<Scalar> directions(Eigen::Map<Matrix<Scalar>, Eigen::Aligned64> v, Workers& workers) {
  constexpr Index columns_a_task = 16;
  Scalar* const length = workers.shared().array<Scalar>(v.cols());
  workers.for_each_band(v.cols(), columns_a_task, [&](Index first, Index last, Scratch& scratch) {
    auto column = scratch.matrix<Scalar>(v.rows(), 1);  // sums: aligned alike
    for (Index c = first; c < last; ++c) {
      column = v.col(c);
      length[c] = to_length(column, 1);
      v.col(c) = column;
    }
  });
  return {v, length};
}

}  // namespace moe::inline MOE_TARGET
