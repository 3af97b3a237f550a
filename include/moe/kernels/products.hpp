/// @file  Every product of weights and tokens passes here, so that how it is computed can change in one place.
#pragma once

#include <algorithm>
#include <type_traits>

#include "moe/core/numerics.hpp"
#include "moe/core/quantized.hpp"
#include "moe/core/scratch.hpp"
#include "moe/core/types.hpp"
#include "moe/kernels/activations.hpp"
#include "moe/kernels/arithmetic.hpp"
#include "moe/kernels/blocks.hpp"
#include "moe/kernels/broadcast_tile.hpp"
#include "moe/kernels/columns.hpp"
#include "moe/kernels/dot_tile.hpp"
#include "moe/kernels/integer_products.hpp"
#include "moe/kernels/rows.hpp"
#include "moe/kernels/tile_use.hpp"
#include "moe/kernels/tiles.hpp"

namespace moe::inline MOE_TARGET::kernels {

/// Calls f with the arithmetic that computes products with weights of type W as asked for, of these stacks or matrices.
template <class W, class F, class... Weights>
decltype(auto) with_arithmetic(const Numerics& numerics, const F& f, const Weights&... weights) {
  if (numerics.products == Products::fast) {
    if constexpr (has_fast<W>) {
      if (pairs_pay()) return f(Fast<W>{});
    }
    if constexpr (std::is_same_v<W, Quantized>) {
      if ((weights.are_integers() && ...)) return f(Fast<W>{});
    }
  }
  return f(Exact<W>{});
}

namespace detail {

/// Whether rows are decoded to floats before they are multiplied.
template <class A>
inline constexpr bool decodes = std::is_same_v<A, Exact<Quantized>>;
static_assert(panel_rows<Exact<Quantized>> == panel_rows<Exact<float>>, "their tiles are those of floats");

/// Numbers that are decoded before they are multiplied, where that is a panel of rows at least.
inline constexpr Index decoded_numbers = 24 << 10;

/// From one decoded row to the next: never a multiple of 4 KB.
inline Index decoded_stride(Index depth) { return round_up(depth, lanes<float>) + lanes<float>; }

/// Rows that are decoded at once: whole panels, so that pairs of gate and up stay pairs.
inline Index rows_decoded(Index depth) {
  constexpr Index panel = panel_rows<Exact<float>>;
  return std::max<Index>(1, std::min(rows_in_group, decoded_numbers / decoded_stride(depth)) / panel) * panel;
}

/// Registers that any decoded rows of up to this depth take.
inline Index decoded_registers(Index depth) {
  return std::max(decoded_numbers, panel_rows<Exact<float>> * decoded_stride(depth)) / lanes<float>;
}

/// f(decoded rows, the number of the first, room that is left) for some rows after the other.
template <class F>
void decode_in_turn(const Rows<Quantized>& rows, Index depth, Lanes<float>* room, const F& f) {
  const Index height = rows_decoded(depth), stride = decoded_stride(depth);
  float* const numbers = reinterpret_cast<float*>(room);
  for (Index top = 0; top < rows.count; top += height) {
    const Index count = std::min(height, rows.count - top);
    for (Index r = 0; r < count; ++r) rows.decode(top + r, 0, depth, numbers + r * stride);
    f(Rows<float>{numbers, numbers + stride, 2 * stride, count}, top, room + decoded_registers(depth));
  }
}

/// Rows that are decoded and multiplied by one column together, and numbers of each at a time: a quarter to a half of
/// L1, and as many sums as hide the latency of one.
inline constexpr int rows_of_one = 4;
inline constexpr Index piece_of_one = 1024;
static_assert(piece_of_one % NumberFormat::max_block == 0);

/// tile[r] = row top + r · the column of x, summed as dot_tile() does. What the next rows are decoded from is on its
/// way meanwhile.
template <int R>
MOE_KERNEL void decoded_dot_tile(const Rows<Quantized>& rows, Index top, const Columns<Exact<float>>& x, float* room,
                                 float* tile) {
  using A = Exact<float>;
  Lanes<float> acc[R][1] = {};
  const Lanes<float>* const column[] = {x.column(0)};
  const Index pieces = (x.depth + piece_of_one - 1) / piece_of_one;
  Index next = 0;  // piece of the rows below, in the order in which they lie
  for (Index first = 0; first < x.depth; first += piece_of_one) {
    const Index count = std::min(piece_of_one, x.depth - first), whole = round_up(count, A::step);
    RowsInPlace<A, R> some;
    for (int r = 0; r < R; ++r) {
      float* const numbers = room + r * decoded_stride(piece_of_one);
      const Index later = next % pieces * piece_of_one;
      rows.fetch(top + R + next++ / pieces, later, std::min(piece_of_one, x.depth - later));
      rows.decode(top + r, first, count, numbers);
      std::fill(numbers + count, numbers + whole, 0.0F);
      some.row[r] = numbers;
    }
    for (Index step = 0; step < whole / A::step; ++step) {
      dot_step<A, R, 1>(some, step, column, first / A::step + step, acc);
    }
  }
  sum_lanes<float, R, 1>(acc, tile);
}

/// out[r] = row r of weights · the column of x.
inline void decoded_dot_products(const Rows<Quantized>& rows, const Columns<Exact<float>>& x, Lanes<float>* room,
                                 float* out) {
  float* const numbers = reinterpret_cast<float*>(room);
  Index row = 0;
  for (; row + rows_of_one <= rows.count; row += rows_of_one) {
    decoded_dot_tile<rows_of_one>(rows, row, x, numbers, out + row);
  }
  for (; row < rows.count; ++row) decoded_dot_tile<1>(rows, row, x, numbers, out + row);
}

/// The same activations, as float's arithmetic sees them.
template <template <class> class Form>
Form<Exact<float>> beside_floats(const Form<Exact<Quantized>>& x) {
  return {x.depth, x.count, x.registers};
}

}  // namespace detail

/// What products() works in, for columns of up to this depth.
template <class A>
Index room_registers([[maybe_unused]] Index depth) {
  if constexpr (detail::decodes<A>) {
    return detail::decoded_registers(depth) + room_registers<Exact<float>>(depth);
  } else if constexpr (std::is_same_v<A, Fast<Quantized>>) {
    return integer_room(depth);
  } else if constexpr (A::blocks_pay == never) {
    return 0;
  } else {
    return broadcast_tile_room<A>(depth);
  }
}

template <class A>
typename A::Register* make_room(Index depth, Scratch& scratch) {
  return scratch.array<typename A::Register>(room_registers<A>(depth));
}

/// Of rows that are decoded first: as products() of broadcast_tile.hpp.
template <class A>
  requires detail::decodes<A>
void products(const Rows<Quantized>& rows, const Blocks<A>& x, Lanes<float>* room, const TileUse<float>& use) {
  if (x.count == 0) return;
  detail::decode_in_turn(rows, x.depth, room, [&](const Rows<float>& some, Index top, Lanes<float>* left) {
    products<Exact<float>>(some, detail::beside_floats(x), left, [&](const Tile<float>& tile) {
      Tile<float> its = tile;
      its.first_row += top;
      use(its);
    });
  });
}

/// out[r + c · stride] = row r of weights · column c of x.
template <class A>
MOE_INLINE void products(const Rows<typename A::Weight>& rows, const Columns<A>& x,
                         [[maybe_unused]] typename A::Register* room, typename A::Scalar* out, Index stride) {
  if constexpr (detail::decodes<A>) {
    if (x.count == 0) return;
    const auto floats = detail::beside_floats(x);
    if (x.count == 1 && x.depth > detail::short_depth) {
      return detail::decoded_dot_products(rows, floats, room, out);
    }
    detail::decode_in_turn(rows, x.depth, room, [&](const Rows<float>& some, Index top, Lanes<float>*) {
      dot_products<Exact<float>>(some, floats, out + top, stride);
    });
  } else if constexpr (std::is_same_v<A, Fast<Quantized>>) {
    integer_products(rows, x, room, out, stride);
  } else {
    dot_products<A>(rows, x, out, stride);
  }
}

/// The same of columns in blocks.
template <class A>
MOE_INLINE void products(const Rows<typename A::Weight>& rows, const Blocks<A>& x, typename A::Register* room,
                         typename A::Scalar* out, Index stride) {
  if constexpr (HasUnits<A>) {
    products<A>(rows, x, room, [&](const Tile<typename A::Scalar>& tile) {
      for (Index c = 0; c < tile.num_columns; ++c) {
        for (Index r = 0; r < tile.num_rows; ++r) out[tile.row(r) + tile.column(c) * stride] = tile(r, c);
      }
    });
  } else {
    integer_products(rows, x, room, out, stride);
  }
}

/// The same of either form. No sum depends on which rows are asked for together.
template <class A>
void products(const Rows<typename A::Weight>& rows, const Activations<A>& x, typename A::Register* room,
              typename A::Scalar* out, Index stride) {
  x.visit([&](const auto& its) { products<A>(rows, its, room, out, stride); });
}

}  // namespace moe::inline MOE_TARGET::kernels
