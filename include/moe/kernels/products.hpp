/// @file  Every product of weights and tokens passes here, so that how it is computed can change in one place.
#pragma once

#include "moe/kernels/broadcast_tile.hpp"
#include "moe/kernels/columns.hpp"
#include "moe/kernels/dot_tile.hpp"
#include "moe/kernels/rows.hpp"
#include "moe/scratch.hpp"
#include "moe/types.hpp"

namespace moe::kernels {

/// Every dot product of a row of weights and a column of x, in tiles: use(row, rows, column, columns, tile, stride),
/// where tile[r · stride + c] = rows[row + r] · x[column + c]. No sum depends on which rows are asked for together.
template <class W, class S, class Use>
void products(const Rows<W>& rows, const Columns<S>& x, Scratch& scratch, const Use& use) {
  if (x.packed) {
    for_each_broadcast_tile(rows, x, scratch, use);
  } else {
    for_each_dot_tile(rows, x, use);
  }
}

}  // namespace moe::kernels
