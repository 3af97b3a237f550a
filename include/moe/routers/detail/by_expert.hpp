/// @file  Scores as an expert sees them: those of all tokens side by side.
#pragma once

#include <algorithm>

#include "moe/core/scratch.hpp"
#include "moe/core/types.hpp"
#include "moe/runtime/workers.hpp"

namespace moe::inline MOE_TARGET {

/// Each column begins a cache line.
template <class Scalar>
using AlignedColumns = Eigen::Map<Matrix<Scalar>, Eigen::Unaligned, Eigen::OuterStride<>>;

/// An uninitialised (rows × cols) matrix. Eigen treats numbers at the ends of a column by their place in memory, so
/// only where columns lie alike do equal tokens get equal scores, to the last bit.
template <class Scalar>
AlignedColumns<Scalar> aligned_columns(Index rows, Index cols, Scratch& scratch) {
  constexpr auto line = Index(Scratch::alignment / sizeof(Scalar));
  const Index stride = (rows + line - 1) / line * line;
  return {scratch.array<Scalar>(stride * cols), rows, cols, Eigen::OuterStride<>(stride)};
}

/// How many items make a task, if one means reading so many numbers: enough that a task takes some microseconds, for so
/// long does it take to start one. Fewer than two tasks run where they are.
inline Index items_a_task(Index numbers_an_item) {
  return std::max<Index>(1, 16384 / std::max<Index>(1, numbers_an_item));
}

/// (n_tokens × num_experts): column e holds what the tokens are to expert e.
/// @param by_token  (num_experts × n_tokens)
template <class Scalar>
AlignedColumns<Scalar> by_expert(const AlignedColumns<Scalar>& by_token, Workers& workers) {
  constexpr auto line = Index(Scratch::alignment / sizeof(Scalar));  // whole cache lines are written
  const Index num_tokens = by_token.cols();
  auto turned = aligned_columns<Scalar>(num_tokens, by_token.rows(), workers.shared());
  workers.for_each_band(num_tokens, line * items_a_task(line * by_token.rows()),
                        [&](Index first, Index last, Scratch&) {
                          for (Index t = first; t < last; t += line) {
                            const Index count = std::min(line, last - t);
                            turned.middleRows(t, count) = by_token.middleCols(t, count).transpose();
                          }
                        });
  return turned;
}

}  // namespace moe::inline MOE_TARGET
