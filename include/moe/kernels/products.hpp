/// @file  Every product of weights and tokens passes here, so that how it is computed can change in one place.
#pragma once

#include "moe/kernels/broadcast_tile.hpp"
#include "moe/kernels/columns.hpp"
#include "moe/kernels/dot_tile.hpp"
#include "moe/kernels/rows.hpp"
#include "moe/kernels/tile_use.hpp"
#include "moe/scratch.hpp"
#include "moe/types.hpp"

namespace moe::kernels {

/// products() of columns that are packed: a tile is whole registers wide.
template <class W, class S>
void packed_products(const Rows<W>& rows, const Columns<S>& x, Scratch& scratch,
                     const TileUse<std::type_identity_t<S>>& use) {
  eigen_assert(x.packed);
  for_each_broadcast_tile(rows, x, scratch, use);
}

/// products() of columns that are not.
template <class W, class S>
void products_in_place(const Rows<W>& rows, const Columns<S>& x, const TileUse<std::type_identity_t<S>>& use) {
  eigen_assert(!x.packed);
  for_each_dot_tile(rows, x, use);
}

/// Every dot product of a row of weights and a column of x, in tiles: use(row, rows, column, columns, tile, stride),
/// where tile[r · stride + c] = rows[row + r] · x[column + c]. No sum depends on which rows are asked for together.
template <class W, class S>
void products(const Rows<W>& rows, const Columns<S>& x, Scratch& scratch, const TileUse<std::type_identity_t<S>>& use) {
  if (x.packed) {
    packed_products(rows, x, scratch, use);
  } else {
    products_in_place(rows, x, use);
  }
}

}  // namespace moe::kernels
