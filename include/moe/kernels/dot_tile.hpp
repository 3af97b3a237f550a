/// @file  Few tokens: dot products along the contiguous axis of weights and tokens, both read in place.
#pragma once

#include <algorithm>
#include <cstring>

#include "moe/kernels/columns.hpp"
#include "moe/kernels/lanes.hpp"
#include "moe/kernels/rows.hpp"
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

/// tile[r][c] = w[r] · x[c]. R·C·U registers accumulate; U depends on C alone, so that how rows are grouped into tiles
/// (which depends on the number of threads) does not change the order in which a dot product is summed.
template <int R, int C, int U, class W, class S>
MOE_INLINE void dot_tile(const W* const (&w)[R], const S* const (&x)[C], Index depth, const Ahead& ahead,
                         S (&tile)[R][C]) {
  constexpr int L = lanes<S>;
  Lanes<S> acc[U][R][C] = {};
  const auto step = [&](Index k, auto u) {
    for (int r = ahead.first; r < ahead.last; ++r) __builtin_prefetch(w[r] + k + u * L + ahead.step, 0, 2);
    unroll<R>([&](auto r) {
      const Lanes<S> weight = widen(w[r] + k + u * L);
      unroll<C>([&](auto c) { acc[u][r][c] += weight * load_as<Lanes<S>>(x[c] + k + u * L); });
    });
  };
  Index k = 0;
  for (; k + U * L <= depth; k += U * L) unroll<U>([&](auto u) { step(k, u); });
  for (; k + L <= depth; k += L) step(k, std::integral_constant<int, 0>{});
  for (int u = 1; u < U; ++u) {
    unroll<R>([&](auto r) { unroll<C>([&](auto c) { acc[0][r][c] += acc[u][r][c]; }); });
  }
  unroll<(R * C + L - 1) / L>([&](auto g) {  // one register of sums for each L dot products
    Lanes<S> group[L] = {};
    unroll<L>([&](auto i) {
      constexpr int dot = g * L + i;
      if constexpr (dot < R * C) group[i] = acc[0][dot / C][dot % C];
    });
    const Lanes<S> total = sums<S>(group);
    std::memcpy(&tile[0][0] + g * L, &total, std::min<int>(L, R * C - g * L) * sizeof(S));
  });
  for (; k < depth; ++k) {
    unroll<R>([&](auto r) { unroll<C>([&](auto c) { tile[r][c] += static_cast<S>(w[r][k]) * x[c][k]; }); });
  }
}

template <int R, int C, int U, class W, class S, class Use>
void dots(const Rows<W>& rows, Index row, const S* const* x, Index column, Index depth, const Ahead& ahead,
          const Use& use) {
  const W* w[R];
  const S* at[C];
  S tile[R][C];
  for (int r = 0; r < R; ++r) w[r] = rows[row + r];
  for (int c = 0; c < C; ++c) at[c] = x[column + c];
  dot_tile<R, C, U>(w, at, depth, ahead, tile);
  use(row, R, column, C, &tile[0][0], C);
}

}  // namespace detail

/// Columns of a tile: as many as leave room for the weights of its rows.
inline constexpr Index max_dot_columns = 6;

/// use(row, rows, column, columns, tile, tile_stride) for tiles that cover rows × columns; a tile is row-major.
/// The rows are outermost: each comes from memory once, and from L1 for all further columns.
template <class W, class S, class Use>
void for_each_dot_tile(const Rows<W>& rows, const Columns<S>& x, const Use& use) {
  constexpr int R = num_registers == 32 ? 4 : 2;
  const Index blocks = (x.count + max_dot_columns - 1) / max_dot_columns;
  const auto across = [&]<int r>(std::integral_constant<int, r>, Index row) {
    for (Index b = 0; b < blocks; ++b) {
      const Index column = x.count * b / blocks, n = x.count * (b + 1) / blocks - column;
      detail::Ahead ahead;  // each block of columns fetches its share of the next rows
      if (row + 2 * r <= rows.count)
        ahead = {int(r * b / blocks), int(r * (b + 1) / blocks), rows[row + r] - rows[row]};
      switch (n) {  // rows, columns, registers along the row
        case 1:
          detail::dots<r, 1, 4>(rows, row, x.in_place, column, x.depth, ahead, use);
          break;
        case 2:
          detail::dots<r, 2, 2>(rows, row, x.in_place, column, x.depth, ahead, use);
          break;
        case 3:
          detail::dots<r, 3, 1>(rows, row, x.in_place, column, x.depth, ahead, use);
          break;
        case 4:
          detail::dots<r, 4, 1>(rows, row, x.in_place, column, x.depth, ahead, use);
          break;
        case 5:
          detail::dots<r, 5, 1>(rows, row, x.in_place, column, x.depth, ahead, use);
          break;
        case 6:
          detail::dots<r, 6, 1>(rows, row, x.in_place, column, x.depth, ahead, use);
          break;
        default:
          eigen_assert(false);
      }
    }
  };
  Index row = 0;
  for (; row + R <= rows.count; row += R) across(std::integral_constant<int, R>{}, row);
  for (; row < rows.count; ++row) across(std::integral_constant<int, 1>{}, row);
}

}  // namespace moe::kernels
