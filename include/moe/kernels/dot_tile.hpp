/// @file  Few tokens: dot products along the contiguous axis, with weights read in place.
#pragma once

#include <algorithm>
#include <cstring>

#include "moe/core/types.hpp"
#include "moe/kernels/arithmetic.hpp"
#include "moe/kernels/columns.hpp"
#include "moe/kernels/lanes.hpp"
#include "moe/kernels/rows.hpp"
#include "moe/kernels/tile_use.hpp"
#include "moe/kernels/transpose.hpp"

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
template <class A, int R, int C, class SomeRows>
MOE_INLINE void dot_step(const SomeRows& rows, Index step, const typename A::Register* const* x, Index x_step,
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

/// tile[r][c] = the sum of the lanes of acc[r][c]: one register of sums for each L dot products.
template <class S, int R, int C>
MOE_INLINE void sum_lanes(const Lanes<S> (&acc)[R][C], S* tile) {
  constexpr int L = lanes<S>;
  unroll<(R * C + L - 1) / L>([&](auto g) {
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

/// tile[r][c] = row r · column c, each summed in the same order whatever R and C are: how rows are grouped into tiles
/// depends on the number of threads, and sums must not. `tail` holds what follows the whole steps, if anything does.
template <class A, int R, int C>
MOE_KERNEL void dot_tile(const RowsInPlace<A, R>& rows, Index whole_steps, const RowsInPlace<A, R>* tail,
                         const typename A::Register* const* x, typename A::Scalar* tile) {
  using S = typename A::Scalar;
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
  sum_lanes<S, R, C>(acc, tile);
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

/// Neighbouring rows of weights where they lie.
template <class A>
struct NeighbouringRows {
  const typename A::Weight* even;
  const typename A::Weight* odd;
  Index pair_step;  // from one even row to the next

  MOE_INLINE const typename A::Weight* at(int r, Index step) const {
    return ((r & 1) ? odd : even) + r / 2 * pair_step + step * A::weights_per_step;
  }
  template <int p>
  MOE_INLINE typename A::Register load(int r, Index step) const {
    return A::template load<p>(at(r, step));
  }
};

/// What is left of them behind the whole steps, and zeros.
template <class A>
struct EndsOfRows {
  NeighbouringRows<A> rows;
  Index whole_steps, left;

  template <int p>
  MOE_INLINE typename A::Register load(int r, Index /*step*/) const {
    typename A::Weight step[A::weights_per_step] = {};
    std::memcpy(static_cast<void*>(step), rows.at(r, whole_steps), std::size_t(left) * sizeof(step[0]));
    return A::template load<p>(step);
  }
  template <int p>
    requires requires(const typename A::Weight* weights) { A::template load_first<p>(weights, Index(1)); }
  MOE_INLINE typename A::Register load(int r, Index /*step*/) const {
    return A::template load_first<p>(rows.at(r, whole_steps), left);
  }
};

/// The same as dot_tile() for short rows.
template <class A, int R, int C>
MOE_INLINE void short_dot_tile(const NeighbouringRows<A>& rows, Index whole_steps, Index left,
                               const typename A::Register* const* x, typename A::Scalar* tile) {
  Lanes<typename A::Scalar> acc[R][C] = {};
  for (Index step = 0; step < whole_steps; ++step) dot_step<A, R, C>(rows, step, x, step, acc);
  if (left > 0) dot_step<A, R, C>(EndsOfRows<A>{rows, whole_steps, left}, 0, x, whole_steps, acc);
  sum_lanes<typename A::Scalar, R, C>(acc, tile);
}

/// for_each_dot_tile() for C columns of short rows, at least R of them.
template <class A, int R, int C>
MOE_KERNEL void for_each_short_dot_tile(const Rows<typename A::Weight>& rows, const Columns<A>& x,
                                        const TileUse<typename A::Scalar>& use) {
  constexpr Index at_once = 8 * R;  // rows, for each call of use()
  typename A::Scalar dots[(R + at_once) * C];
  const Index whole_steps = x.depth / A::step, left = x.depth % A::step;
  const typename A::Register* column[C];
  for (int c = 0; c < C; ++c) column[c] = x.column(c);
  for (Index top = 0; top < rows.count; top += at_once) {
    const Index end = std::min(top + at_once, rows.count);
    for (Index row = top; row < end; row += R) {
      const Index first = std::min(row, rows.count - R);  // the last tile begins with rows of the one before
      short_dot_tile<A, R, C>({rows[first], rows[first + 1], rows.pair_step}, whole_steps, left, column,
                              dots + (R + first - top) * C);
    }
    use({.first_row = top,
         .rows_apart = 1,
         .num_rows = end - top,
         .first_column = 0,
         .num_columns = C,
         .numbers = dots + R * C,
         .stride = C});
  }
}

/// Numbers up to which a row is short: docs/performance.md, "Tiny layers". Of longer ones, side by side, memory sees
/// many short streams, which costs weights of 16 bits a tenth.
inline constexpr Index short_depth = 512;

/// Where a register of sums has room for more rows of C columns than a tile has, takes short rows to as many at once:
/// to sum a register's lanes costs more than to multiply a short row. Says whether it did.
template <class A, int C>
bool takes_short_rows(const Rows<typename A::Weight>& rows, const Columns<A>& x,
                      const TileUse<typename A::Scalar>& use) {
  constexpr int R = int(A::L) / C;
  if constexpr (R > dot_rows(C)) {
    if (rows.count >= R) {
      for_each_short_dot_tile<A, R, C>(rows, x, use);
      return true;
    }
    if (R >= 8 && rows.count >= R / 4) {
      for_each_short_dot_tile<A, std::max(2, R / 4), C>(rows, x, use);
      return true;
    }
  }
  return false;
}

/// The weights of a row that follow its whole steps, and zeros.
template <class A, int R>
struct Tails {
  typename A::Weight weights[R][A::weights_per_step];  // written where there is a tail

  RowsInPlace<A, R> after(const RowsInPlace<A, R>& rows, Index depth) {
    RowsInPlace<A, R> tail;
    for (int r = 0; r < R; ++r) {
      std::memset(static_cast<void*>(weights[r]), 0, sizeof weights[r]);
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
  if constexpr (max_columns > 1) {
    if (x.count <= 2 && x.depth <= detail::short_depth) {
      if (x.count == 1 && detail::takes_short_rows<A, 1>(rows, x, use)) return;
      if (x.count == 2 && detail::takes_short_rows<A, 2>(rows, x, use)) return;
    }
  }
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
