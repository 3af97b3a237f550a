/// @file  Every product of weights and tokens passes here, so that how it is computed can change in one place.
#pragma once

#include <algorithm>

#include "moe/core/numerics.hpp"
#include "moe/core/scratch.hpp"
#include "moe/core/types.hpp"
#include "moe/kernels/arithmetic.hpp"
#include "moe/kernels/broadcast_tile.hpp"
#include "moe/kernels/columns.hpp"
#include "moe/kernels/dot_tile.hpp"
#include "moe/kernels/rows.hpp"
#include "moe/kernels/tile_use.hpp"

namespace moe::inline MOE_TARGET::kernels {

/// Whether so many columns are better turned into blocks. Their sums have another order than those of few columns.
template <class A>
bool in_blocks(Index columns, const Numerics& numerics) {
  return columns >= A::blocks_pay && !numerics.batch_invariant;
}

/// Calls f with the arithmetic that computes products with weights of type W as asked for.
template <class W, class F>
decltype(auto) with_arithmetic(const Numerics& numerics, const F& f) {
  if constexpr (has_fast<W>) {
    if (numerics.products == Products::fast) return f(Fast<W>{});
  }
  return f(Exact<W>{});
}

/// What products() works in, for columns of up to this depth.
template <class A>
Index room_registers([[maybe_unused]] Index depth) {
  if constexpr (A::blocks_pay == never) {
    return 0;
  } else {
    return broadcast_tile_room<A>(depth);
  }
}

template <class A>
typename A::Register* make_room(Index depth, Scratch& scratch) {
  return scratch.array<typename A::Register>(room_registers<A>(depth));
}

/// Every dot product of a row of weights and a column of x, which are in blocks: use(tile), where the first row of a
/// tile is even.
template <class A>
void products(const Rows<typename A::Weight>& rows, const Columns<A>& x, typename A::Register* room,
              const TileUse<typename A::Scalar>& use) {
  eigen_assert(x.in_blocks);
  if constexpr (A::blocks_pay != never) for_each_broadcast_tile<A>(rows, x, room, use);
}

/// out[r + c · stride] = row r of weights · column c of x, in blocks or not. No sum depends on which rows are asked for
/// together.
template <class A>
void products(const Rows<typename A::Weight>& rows, const Columns<A>& x, typename A::Register* room,
              typename A::Scalar* out, Index stride) {
  using S = typename A::Scalar;
  if constexpr (A::blocks_pay != never) {
    if (x.in_blocks) {
      return products<A>(rows, x, room, [&](const Tile<S>& tile) {
        for (Index c = 0; c < tile.num_columns; ++c) {
          for (Index r = 0; r < tile.num_rows; ++r) out[tile.row(r) + tile.column(c) * stride] = tile(r, c);
        }
      });
    }
  }
  dot_products<A>(rows, x, out, stride);
}

}  // namespace moe::inline MOE_TARGET::kernels
