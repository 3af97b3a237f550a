/// @file  Few tokens: dot products along the contiguous axis, with weights read in place.
#pragma once

#include <algorithm>
#include <cstring>

#include "moe/kernels/arithmetic.hpp"
#include "moe/kernels/columns.hpp"
#include "moe/kernels/lanes.hpp"
#include "moe/kernels/rows.hpp"
#include "moe/kernels/tile_use.hpp"
#include "moe/kernels/transpose.hpp"
#include "moe/types.hpp"

namespace moe::inline MOE_TARGET::kernels {

/// Columns of a tile, at most. Where nothing is optimised a tile is a single dot product: the bits are the same, and
/// one shape compiles in a fraction of the time of eighteen.
#if defined(__OPTIMIZE__)
constexpr int max_dot_columns = num_registers == 32 ? 8 : 4;
#else
constexpr int max_dot_columns = 1;
#endif

/// Rows of a tile of so many columns: few where memory is what it waits for, and else as many as registers hold.
constexpr int dot_rows(int columns) {
  if (num_registers == 32) return columns <= 2 ? 2 : columns <= 6 ? 4 : 3;
  return columns <= 2 ? 4 : 3;
}

/// Whether a tile of so many columns fetches what comes next meanwhile. Where it does little else than wait for memory,
/// a processor with wide registers is better left alone.
constexpr bool fetches_ahead(int columns) { return num_registers == 16 || columns > 2; }

namespace detail {

/// Rows of weights where they lie. While they are at work, what lies `ahead` elements further is fetched: for each row
/// what a step takes every `period` steps, for the first time in `countdown` steps.
template <class A, int R>
struct RowsInPlace {
  static constexpr Index line = 64 / Index(sizeof(typename A::Weight));
  static constexpr int lines_of_step = int(std::max<Index>(1, A::weights_per_step / line));
  static constexpr Index steps_of_line = std::max<Index>(1, line / A::weights_per_step);

  const typename A::Weight* row[R];
  Index ahead = 0, period = steps_of_line, countdown = 0;

  template <int p>
  MOE_INLINE typename A::Register load(int r, Index step) const {
    return A::template load<p>(row[r] + step * A::weights_per_step);
  }
  MOE_INLINE void fetch(Index step) {
    if (countdown-- > 0) return;
    countdown = period - 1;
    const Index later = step * A::weights_per_step + ahead;
    // always_inline: g++ takes a function that does nothing but fetch for one that does nothing
    unroll<R>([&](auto r) __attribute__((always_inline)) {
      unroll<lines_of_step>([&](auto l)
                                __attribute__((always_inline)) { __builtin_prefetch(row[r] + later + l * line); });
    });
  }
};

/// acc[r][c] += the products of one step.
template <class A, int R, int C>
MOE_INLINE void dot_step(const RowsInPlace<A, R>& rows, Index step, const typename A::Register* const* x, Index x_step,
                         Lanes<typename A::Scalar> (&acc)[R][C]) {
  if constexpr (R > C) {  // columns stay in registers while rows pass
    typename A::Register column[C][A::parts];
    unroll<C>([&](auto c) {
      unroll<A::parts>([&](auto p) {
        column[c][p] = x[c][x_step * A::parts + p];
        keep_in_register(column[c][p]);
      });
    });
    unroll<R>([&](auto r) __attribute__((always_inline)) {
      unroll<A::parts>([&](auto p) __attribute__((always_inline)) {
        typename A::Register weights = rows.template load<p>(r, step);
        if constexpr (C > 1) keep_in_register(weights);
        unroll<C>([&](auto c) { A::multiply_add(acc[r][c], weights, column[c][p]); });
      });
    });
  } else {  // rows stay while columns pass
    unroll<A::parts>([&](auto p) __attribute__((always_inline)) {
      typename A::Register weights[R];
      unroll<R>([&](auto r) { weights[r] = rows.template load<p>(r, step); });
      unroll<C>([&](auto c) __attribute__((always_inline)) {
        typename A::Register column = x[c][x_step * A::parts + p];
        keep_in_register(column);
        unroll<R>([&](auto r) { A::multiply_add(acc[r][c], weights[r], column); });
      });
    });
  }
}

/// tile[r][c] = row r · column c, each summed in the same order whatever R and C are: how rows are grouped into tiles
/// depends on the number of threads, and sums must not. `tail` holds what follows the whole steps, if anything does.
template <class A, int R, int C>
MOE_KERNEL void dot_tile(const RowsInPlace<A, R>& rows, Index whole_steps, const RowsInPlace<A, R>* tail,
                         const typename A::Register* const* x, typename A::Scalar* tile) {
  using S = typename A::Scalar;
  constexpr int L = A::L;
  Lanes<S> acc[R][C] = {};
  const typename A::Register* column[C];
  unroll<C>([&](auto c) { column[c] = x[c]; });
  RowsInPlace<A, R> from = rows;
  for (Index first = 0, last = whole_steps;;) {
    for (Index step = first; step < last; ++step) {
      if constexpr (fetches_ahead(C)) from.fetch(step - first);
      dot_step<A, R, C>(from, step - first, column, step, acc);
    }
    if (tail == nullptr) break;
    from = *tail;
    tail = nullptr;
    first = last++;
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
}

/// Columns [column, column + n) of so many rows, where n ≤ max_columns.
template <class A, int R, int max_columns>
void dot_tile_of(Index n, const RowsInPlace<A, R>& rows, Index whole_steps, const RowsInPlace<A, R>* tail,
                 const Columns<A>& x, Index column, typename A::Scalar* tile) {
  const typename A::Register* from[max_columns];
  for (Index c = 0; c < n; ++c) from[c] = x.column(column + c);
  unroll<max_columns>([&](auto before) {
    constexpr int C = before + 1;
    // the widest of several blocks of columns has one column more
    if constexpr (R == 1 || R == dot_rows(C) || R == dot_rows(C + 1)) {
      if (n == C) dot_tile<A, R, C>(rows, whole_steps, tail, from, tile);
    }
  });
}

/// The weights of a row that follow its whole steps, and zeros.
template <class A, int R>
struct Tails {
  typename A::Weight weights[R][A::weights_per_step] = {};

  RowsInPlace<A, R> after(const RowsInPlace<A, R>& rows, Index depth) {
    RowsInPlace<A, R> tail;
    for (int r = 0; r < R; ++r) {
      std::memcpy(static_cast<void*>(weights[r]), rows.row[r] + depth / A::step * A::weights_per_step,
                  std::size_t(depth % A::step) * sizeof(weights[r][0]));
      tail.row[r] = weights[r];
    }
    return tail;
  }
};

}  // namespace detail

/// Rows that columns in groups are taken to together.
inline constexpr Index rows_in_group = 96;

/// use(tile) for tiles that cover rows × columns. The rows of a tile lie far apart, one in each of as many bands, so
/// that each band comes from memory as one long stream; once, and from the cache for all further columns.
template <class A, int max_columns = max_dot_columns>
void for_each_dot_tile(const Rows<typename A::Weight>& rows, const Columns<A>& x,
                       const TileUse<typename A::Scalar>& use) {
  using Register = typename A::Register;
  if (rows.count == 0 || x.count == 0) return;
  // Half of L2 for the columns of a group, which stay while a group of rows passes by, which stays in the last cache.
  const Index column_bytes = x.stride() * Index(sizeof(Register));
  const Index group = std::max<Index>(1, Eigen::l2CacheSize() / 2 / column_bytes / max_columns) * max_columns;
  if (x.count > group) {
    for (Index top = 0; top < rows.count; top += rows_in_group) {
      const auto some_rows = rows.middle(top, std::min(rows_in_group, rows.count - top));
      for (Index left = 0; left < x.count; left += group) {
        const Columns<A> some{x.depth, std::min(group, x.count - left), false, x.registers + left * x.stride()};
        for_each_dot_tile<A, max_columns>(some_rows, some, [&](Tile<typename A::Scalar> tile) {
          tile.first_row += top;
          tile.first_column += left;
          use(tile);
        });
      }
    }
    return;
  }
  const Index blocks = (x.count + max_columns - 1) / max_columns;
  const Index whole_steps = x.depth / A::step, steps = x.steps();

  const auto across = [&]<int R>(std::integral_constant<int, R>, Index row, Index apart) {
    detail::RowsInPlace<A, R> in_place;
    for (int r = 0; r < R; ++r) in_place.row[r] = rows[row + r * apart];
    if (blocks > 1) {
      in_place.ahead = row + 1 < apart ? rows[row + 1] - rows[row] : 0;
    } else {
      in_place.ahead = 2048 / Index(sizeof(typename A::Weight));
    }
    detail::Tails<A, R> tails;
    detail::RowsInPlace<A, R> tail;
    if (whole_steps < steps) tail = tails.after(in_place, x.depth);
    for (Index b = 0; b < blocks; ++b) {
      const Index column = x.count * b / blocks, n = x.count * (b + 1) / blocks - column;
      in_place.period = blocks * in_place.steps_of_line;  // each block of columns fetches its share of the rows below
      in_place.countdown = b * in_place.steps_of_line;
      typename A::Scalar dots[R * max_columns];
      detail::dot_tile_of<A, R, max_columns>(n, in_place, whole_steps, whole_steps < steps ? &tail : nullptr, x, column,
                                             dots);
      use({.first_row = row,
           .rows_apart = apart,
           .num_rows = R,
           .first_column = column,
           .num_columns = n,
           .numbers = dots,
           .stride = n});
    }
  };
  const auto down = [&]<int R>(std::integral_constant<int, R> tall) {
    const Index band = rows.count / R;
    for (Index row = 0; row < band; ++row) across(tall, row, band);
    for (Index row = R * band; row < rows.count; ++row) across(std::integral_constant<int, 1>{}, row, Index(1));
  };
  const Index widest = (x.count + blocks - 1) / blocks;
  unroll<max_columns>([&](auto before) {
    constexpr int C = before + 1;
    constexpr int R = max_columns == 1 ? 1 : dot_rows(C);
    if (widest == C) down(std::integral_constant<int, R>{});
  });
}

}  // namespace moe::inline MOE_TARGET::kernels
