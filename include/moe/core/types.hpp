/// @file  The vocabulary: the one place that says how numbers lie in memory.
#pragma once

#include <type_traits>

#include <Eigen/Core>

#include "moe/core/target.hpp"

namespace moe::inline MOE_TARGET {

using Index = Eigen::Index;  ///< Signed, as Eigen's: sizes and numbers of tokens, experts, rows and columns.

/// Weight types that halve the bytes of float; activations stay float.
using bfloat16 = Eigen::bfloat16;
using float16 = Eigen::half;  ///< IEEE's binary16: 5 bits of exponent, 10 of fraction.

/// Column-major. A batch of tokens is (d_model × n_tokens): one token, one contiguous column. The memory is that of a
/// row-major [tokens, d_model] tensor of any framework, so a caller's buffer is mapped, never copied.
template <class Scalar>
using Matrix = Eigen::Matrix<Scalar, Eigen::Dynamic, Eigen::Dynamic>;

/// Parameters of y = W·x, (outputs × inputs). Row-major, as checkpoints store them: a row is one output.
template <class Scalar>
using Weight = Eigen::Matrix<Scalar, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

/// A number for each row of a Weight: a bias, a scale. type_identity: deduced from what stands beside it, so that any
/// expression fits.
template <class Scalar>
using Vector = Eigen::Matrix<std::type_identity_t<Scalar>, Eigen::Dynamic, 1>;

/// One Weight where it lies, e.g. in a mapped file or in the middle of a larger tensor.
template <class Scalar>
using WeightMap = Eigen::Map<const Weight<Scalar>, Eigen::Unaligned, Eigen::OuterStride<>>;

/// A Weight as a WeightMap.
template <class Scalar>
WeightMap<Scalar> map_of(const Weight<Scalar>& w) {
  return {w.data(), w.rows(), w.cols(), Eigen::OuterStride<>(w.cols())};
}

/// The numbers of a parameter that is owned, to write. Its shape stays.
template <class Parameter>
Eigen::Map<Parameter> to_write(Parameter& parameter) {
  return {parameter.data(), parameter.rows(), parameter.cols()};
}

/// What functions read (a matrix, a block of one, or mapped memory), never copied when columns are contiguous.
/// type_identity: a call deduces Scalar from its router, expert or layer, never from here, so that blocks fit too.
template <class Scalar>
using ConstMatrixRef = Eigen::Ref<const Matrix<std::type_identity_t<Scalar>>>;

/// What functions write. The caller has already given it the right shape.
template <class Scalar>
using MatrixRef = Eigen::Ref<Matrix<std::type_identity_t<Scalar>>>;

/// Columns where they lie: what functions make of a part of what they read. (A block would be one type of expression
/// more, which costs every program that runs a layer 30 functions.)
template <class Scalar>
using ColumnsMap = Eigen::Map<const Matrix<Scalar>, Eigen::Unaligned, Eigen::OuterStride<>>;

/// Those from `first` on.
template <class Scalar>
ColumnsMap<Scalar> columns_of(const Eigen::Ref<const Matrix<Scalar>>& x, Index first, Index count) {
  return {x.data() + first * x.outerStride(), x.rows(), count, Eigen::OuterStride<>(x.outerStride())};
}

/// All rows, or all columns, in `matrix(rows, columns)`: Eigen::all in Eigen 3.4, Eigen::placeholders::all in Eigen 5.
inline const Eigen::placeholders::all_t every;

/// The type of x and y beside weights of type W: double for double, float for all narrower ones.
template <class W>
using ActivationScalar = std::conditional_t<std::is_same_v<W, double>, double, float>;

}  // namespace moe::inline MOE_TARGET
