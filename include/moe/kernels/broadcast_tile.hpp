/// @file  Many tokens: one weight at a time against registers full of packed tokens.
#pragma once

#include <algorithm>

#include "moe/kernels/columns.hpp"
#include "moe/kernels/lanes.hpp"
#include "moe/kernels/rows.hpp"
#include "moe/kernels/tile_use.hpp"
#include "moe/kernels/widen.hpp"
#include "moe/scratch.hpp"
#include "moe/types.hpp"

namespace moe::kernels {

/// Rows of a panel: even, so that gate and up rows stay pairs; times two registers of tokens they fill 3/4 of all.
inline constexpr int panel_rows = num_registers == 32 ? 12 : 6;

namespace detail {

/// The rows that come after these, to be fetched while these are at work.
template <class W>
struct NextRows {
  const W* row[panel_rows];
  Index count = 0;
};

/// Copies rows [row, row + panel_rows) as S to panel[panel_rows][stride]; rows beyond the last are 0.
template <class W, class S>
MOE_KERNEL void fill_panel(const Rows<W>& rows, Index row, Index depth, S* panel, Index stride) {
  for (int r = 0; r < panel_rows; ++r) {
    S* to = panel + r * stride;
    if (row + r >= rows.count) {
      std::fill(to, to + depth, S(0));
      continue;
    }
    const W* from = rows[row + r];
    Index k = 0;
    for (; k + lanes<S> <= depth; k += lanes<S>) {
      const Lanes<S> wide = widen(from + k);
      std::memcpy(to + k, &wide, sizeof wide);
    }
    for (; k < depth; ++k) to[k] = static_cast<S>(from[k]);
  }
}

/// tile[panel_rows][V registers] = panel · block, summed along depth in order. Meanwhile the rows of the next panel
/// come nearer, a line of each at a time.
template <int V, class W, class S>
MOE_KERNEL void broadcast_tile(const S* panel, Index stride, const S* block, Index depth, S* tile,
                               const NextRows<W>& next) {
  constexpr Index L = lanes<S>, line = 64 / Index(sizeof(W));
  Lanes<S> acc[panel_rows][V] = {};
  for (Index begin = 0; begin < depth; begin += line) {
    for (Index r = 0; r < next.count; ++r) __builtin_prefetch(next.row[r] + begin, 0, 2);
    const Index end = std::min(depth, begin + line);
    for (Index k = begin; k < end; ++k) {
      Lanes<S> x[V];
      unroll<V>([&](auto v) { x[v] = load_as<Lanes<S>>(block + (k * V + v) * L); });
      unroll<panel_rows>([&](auto r) {
        const Lanes<S> weight = panel[r * stride + k] - Lanes<S>{};  // the same number in each lane
        unroll<V>([&](auto v) { acc[r][v] += weight * x[v]; });
      });
    }
  }
  std::memcpy(tile, acc, sizeof acc);
}

}  // namespace detail

/// As for_each_dot_tile, for packed columns.
template <class W, class S>
void for_each_broadcast_tile(const Rows<W>& rows, const Columns<S>& x, Scratch& scratch,
                             const TileUse<std::type_identity_t<S>>& use) {
  const Index stride = x.depth + lanes<S>;  // never a multiple of 4 KB, where the rows of a panel would collide in L1
  S* panel = scratch.array<S>(panel_rows * stride);
  S* tile = scratch.array<S>(panel_rows * full_block<S>);
  // Half of L2 for packed tokens, which stay while the panels of an expert pass by.
  const Index blocks_in_cache =
      std::max<Index>(1, Eigen::l2CacheSize() / 2 / (std::max<Index>(1, x.depth) * full_block<S> * Index(sizeof(S))));
  const Index step = blocks_in_cache * full_block<S>;

  for (Index begin = 0; begin < x.count; begin += step) {
    const Index end = std::min(x.count, begin + step);
    for (Index row = 0; row < rows.count; row += panel_rows) {
      const Index filled = std::min<Index>(panel_rows, rows.count - row);
      detail::fill_panel(rows, row, x.depth, panel, stride);
      detail::NextRows<W> next;
      for (Index r = row + panel_rows; r < std::min(rows.count, row + 2 * panel_rows); ++r)
        next.row[next.count++] = rows[r];
      for (Index column = begin; column < end; column += full_block<S>) {
        const Index width = block_width<S>(x.count - column);
        const S* block = x.packed + column * x.depth;
        if (width == full_block<S>) {
          detail::broadcast_tile<2>(panel, stride, block, x.depth, tile, next);
        } else {
          detail::broadcast_tile<1>(panel, stride, block, x.depth, tile, next);
        }
        next.count = 0;
        use(row, filled, column, std::min(width, x.count - column), tile, width);
      }
    }
  }
}

}  // namespace moe::kernels
