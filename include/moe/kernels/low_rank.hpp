/// @file  A product of low rank that is added to another one.
#pragma once

#include "moe/core/types.hpp"
#include "moe/kernels/lanes.hpp"
#include "moe/kernels/multiply_add.hpp"
#include "moe/kernels/tile_use.hpp"

namespace moe::inline MOE_TARGET::kernels {

/// B·U, beside a product of (rows × columns): B (rows × rank) row-major, U (rank × columns) row-major.
template <class S>
struct LowRank {
  const S* b = nullptr;
  Index rank = 0;  // 0 for nothing
  const S* u = nullptr;
  Index u_stride = 0;

  /// What is added from this column on.
  LowRank from(Index column) const { return {b, rank, u != nullptr ? u + column : nullptr, u_stride}; }
};

/// What is added to gate and up, and to the expert's answer.
template <class S>
struct LowRanks {
  LowRank<S> gate, up, down;

  LowRanks from(Index column) const { return {gate.from(column), up.from(column), down.from(column)}; }
};

/// tile[c] += (B·U)(row, column + c) for so many columns: one row of a tile.
template <class S>
MOE_KERNEL void add_low_rank(const LowRank<S>& added, Index row, Index column, Index columns, S* tile) {
  for (Index k = 0; k < added.rank; ++k) {
    const S b = added.b[row * added.rank + k];
    const S* const u = added.u + k * added.u_stride + column;
    for (Index c = 0; c < columns; ++c) tile[c] = multiply_add(b, u[c], tile[c]);
  }
}

/// The same for a whole tile, whose rows count from `first` on.
template <class S>
void add_low_rank(const LowRank<S>& added, Index first, const Tile<S>& tile) {
  if (added.rank == 0) return;
  for (Index r = 0; r < tile.num_rows; ++r) {
    add_low_rank(added, first + tile.row(r), tile.first_column, tile.num_columns, &tile(r, 0));
  }
}

/// to[r + c · stride] += (B·U)(first + r, c), for so many rows and columns.
template <class S>
void add_low_rank(const LowRank<S>& added, Index first, Index rows, Index columns, S* to, Index stride) {
  if (added.rank == 0) return;
  for (Index c = 0; c < columns; ++c) {
    for (Index r = 0; r < rows; ++r) {
      S& sum = to[r + c * stride];
      for (Index k = 0; k < added.rank; ++k) {
        sum = multiply_add(added.b[(first + r) * added.rank + k], added.u[k * added.u_stride + c], sum);
      }
    }
  }
}

}  // namespace moe::inline MOE_TARGET::kernels
