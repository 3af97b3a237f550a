/// @file  Few tokens: dot products along the contiguous axis of weights and tokens, both read in place.
#pragma once

#include <algorithm>
#include <cstring>

#include "moe/kernels/columns.hpp"
#include "moe/kernels/lanes.hpp"
#include "moe/kernels/rows.hpp"
#include "moe/kernels/tile_use.hpp"
#include "moe/kernels/transpose.hpp"
#include "moe/kernels/widen.hpp"
#include "moe/types.hpp"

namespace moe::kernels {

namespace detail {

/// Rows [first, last) of a tile whose successors, `step` numbers further, are fetched meanwhile.
struct Ahead {
  int first = 0, last = 0;
  Index step = 0;
};

/// tile[r][c] = w[r] · x[c], each summed in the same order whatever R and C are: how rows are grouped into tiles
/// depends on the number of threads, and sums must not.
template <int R, int C, class W, class S>
MOE_KERNEL void dot_tile(const W* const* w, const S* const* x, Index depth, const Ahead& ahead, S* tile) {
  constexpr int L = lanes<S>;
  Lanes<S> acc[R][C] = {};
  Index k = 0;
  for (; k + L <= depth; k += L) {
    for (int r = ahead.first; r < ahead.last; ++r) __builtin_prefetch(w[r] + k + ahead.step, 0, 2);
    unroll<R>([&](auto r) {
      const Lanes<S> weight = widen(w[r] + k);
      unroll<C>([&](auto c) { acc[r][c] += weight * load_as<Lanes<S>>(x[c] + k); });
    });
  }
  unroll<(R * C + L - 1) / L>([&](auto g) {  // one register of sums for each L dot products
    Lanes<S> group[L] = {};
    unroll<L>([&](auto i) {
      constexpr int dot = g * L + i;
      if constexpr (dot < R * C) group[i] = acc[dot / C][dot % C];
    });
    const Lanes<S> total = sums<S>(group);
    constexpr std::size_t filled = std::min<int>(L, R * C - g * L);
    std::memcpy(tile + g * L, &total, filled * sizeof(S));
  });
  for (; k < depth; ++k) {
    unroll<R>([&](auto r) { unroll<C>([&](auto c) { tile[r * C + c] += static_cast<S>(w[r][k]) * x[c][k]; }); });
  }
}

}  // namespace detail

/// Columns of a tile: as many as leave room for the weights of its rows.
inline constexpr int max_dot_columns = 6;

/// Dot products of a tile, each in a register of its own.
inline constexpr int max_dots = num_registers == 32 ? 24 : 12;

/// use(row, rows, column, columns, tile, tile_stride) for tiles that cover rows × columns; a tile is row-major.
/// The rows are outermost: each comes from memory once, and from L1 for all further columns.
template <class W, class S>
void for_each_dot_tile(const Rows<W>& rows, const Columns<S>& x, const TileUse<std::type_identity_t<S>>& use) {
  const Index blocks = (x.count + max_dot_columns - 1) / max_dot_columns;
  const auto across = [&]<int r>(std::integral_constant<int, r>, Index row) {
    const W* w[r];
    for (int i = 0; i < r; ++i) w[i] = rows[row + i];
    for (Index b = 0; b < blocks; ++b) {
      const Index column = x.count * b / blocks, n = x.count * (b + 1) / blocks - column;
      detail::Ahead ahead;                     // each of several blocks of columns fetches its share of the next rows
      if (r > 1 && row + 2 * r <= rows.count)  // of the same matrix: an even number of rows further
        ahead = {int(r * b / blocks), int(r * (b + 1) / blocks), rows[row + r] - rows[row]};
      unroll<max_dot_columns>([&](auto before) {
        constexpr int c = before + 1;
        if constexpr (r * c <= max_dots) {
          if (n != c) return;
          S dots[r * c];
          detail::dot_tile<r, c>(w, x.in_place + column, x.depth, ahead, dots);
          use(row, Index(r), column, Index(c), dots, Index(c));
        }
      });
    }
  };
  const auto down = [&]<int r>(std::integral_constant<int, r> tall) {
    Index row = 0;
    for (; row + r <= rows.count; row += r) across(tall, row);
    for (; row < rows.count; ++row) across(std::integral_constant<int, 1>{}, row);
  };
  // One or two tokens: eight rows at once, which keeps memory busiest. More: what fits the registers.
  if (num_registers < 32) return down(std::integral_constant<int, 2>{});
  if (x.count <= 2) return down(std::integral_constant<int, 8>{});
  down(std::integral_constant<int, 4>{});
}

}  // namespace moe::kernels
