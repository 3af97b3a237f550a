/// @file  Few tokens: dot products along the contiguous axis, with weights read in place.
#pragma once

#include <algorithm>
#include <cstring>

#include "moe/core/types.hpp"
#include "moe/kernels/arithmetic.hpp"
#include "moe/kernels/columns.hpp"
#include "moe/kernels/lanes.hpp"
#include "moe/kernels/rows.hpp"
#include "moe/kernels/transpose.hpp"
#include "moe/kernels/x86/is_intel.hpp"

namespace moe::inline MOE_TARGET::kernels {

/// Columns of a tile, at most. Where nothing is optimised a tile is a single dot product: the bits are the same, and
/// one shape compiles in a fraction of the time of eighteen.
#if defined(__OPTIMIZE__)
constexpr int max_dot_columns = num_registers == 32 ? 8 : 4;
#else
constexpr int max_dot_columns = 1;
#endif

/// Columns of a tile where there are several: fewer columns leave registers for more rows, which read them less often.
constexpr int dot_columns_of_several(int most) { return most == 8 ? 6 : most; }

/// Rows of a tile of so many columns: few where memory is what it waits for, and else as many as registers hold.
constexpr int dot_rows(int columns) {
  if (num_registers == 32) return columns <= 2 ? 2 : columns <= 6 ? 4 : 3;
  return columns <= 2 ? 4 : 3;
}

/// Whether a tile of so many columns fetches what comes next meanwhile. Where it does little else than wait for memory,
/// a processor with wide registers is better left alone, unless Intel made it.
inline bool fetches_ahead(int columns) {
  if (num_registers == 16 || columns > 2) return true;
#if defined(__x86_64__)
  return is_intel();
#else
  return false;
#endif
}

/// Rows that columns in groups are taken to together.
inline constexpr Index rows_in_group = 96;

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
        typename A::Register part = x[c][x_step * A::parts + p];
        keep_in_register(part);
        column[c][p] = part;
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

/// tile[c][r] = the sum of the lanes of acc[r][c]: one register of sums for each L dot products.
template <class S, int R, int C>
MOE_INLINE void sum_lanes(const Lanes<S> (&acc)[R][C], S* tile) {
  constexpr int L = lanes<S>;
  unroll<(R * C + L - 1) / L>([&](auto g) {
    constexpr int filled = std::min<int>(L, R * C - g * L);
    Lanes<S> group[L] = {};
    unroll<filled>([&](auto i) {
      constexpr int dot = g * L + i;
      group[i] = acc[dot % R][dot / R];
    });
    const Lanes<S> total = sums<S, filled>(group);
    std::memcpy(tile + g * L, &total, filled * sizeof(S));
  });
}

/// tile[c][r] = row r · column c, each summed in the same order whatever R and C are: how rows are grouped into tiles
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
    if (fetches_ahead(C)) {
      for (Index step = first; step < last; ++step) {
        from.fetch(step - first);
        dot_step<A, R, C>(from, step - first, column, step, acc);
      }
    } else {
      for (Index step = first; step < last; ++step) dot_step<A, R, C>(from, step - first, column, step, acc);
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

/// Rows of weights where they lie, a step at a time.
template <class A, int R>
struct RowsInStep {
  const typename A::Weight* row[R];

  MOE_INLINE RowsInStep(const typename A::Weight* first, Index apart) {
    repeat<R>([&](auto r) { point(r, first + r * apart); });
  }
  template <int p>
  MOE_INLINE typename A::Register load(int r, Index step) const {
    return A::template load<p>(row[r] + step * A::weights_per_step);
  }
  MOE_INLINE void next() {
    repeat<R>([&](auto r) { point(r, row[r] + A::weights_per_step); });
  }

 private:
  /// A pointer for each row: two registers that make an address cost each product an instruction more.
  MOE_INLINE void point(int r, const typename A::Weight* to) {
    keep_in_register(to);
    row[r] = to;
  }
};

/// What is left of rows behind their whole steps, and zeros; of its parts so many are whole.
template <class A, int R, int whole_parts>
struct EndsOfRows {
  const RowsInStep<A, R>& rows;
  Index left;

  template <int p>
  MOE_INLINE typename A::Register load(int r, Index step) const {
    if constexpr (p < whole_parts) {
      return rows.template load<p>(r, step);
    } else if constexpr (requires { A::parts_in_turn; } && p > whole_parts) {
      return typename A::Register{};
    } else if constexpr (requires { A::template load_first<p>(rows.row[r], left); }) {
      return A::template load_first<p>(rows.row[r], left);
    } else {
      typename A::Weight last[A::weights_per_step] = {};
      std::memcpy(static_cast<void*>(last), rows.row[r], std::size_t(left) * sizeof(last[0]));
      return A::template load<p>(last);
    }
  }
};

/// acc[r][c] += row r · column c, of columns of this depth; where it is so many whole steps, known to the compiler,
/// without a loop.
template <class A, int R, int C, int known_steps>
MOE_INLINE void add_dot_products(RowsInStep<A, R> rows, Index depth, const typename A::Register* const* x,
                                 Lanes<typename A::Scalar> (&acc)[R][C]) {
  if constexpr (known_steps > 0) {
    return unroll<known_steps>([&](auto step)
                                   __attribute__((always_inline)) { dot_step<A, R, C>(rows, step, x, step, acc); });
  }
  const typename A::Register* column[C];
  for (int c = 0; c < C; ++c) column[c] = x[c];
  const Index left = depth % A::step;
  for (Index steps = depth / A::step; steps > 0; --steps) {
    dot_step<A, R, C>(rows, 0, column, 0, acc);
    rows.next();
    for (int c = 0; c < C; ++c) column[c] += A::parts;
  }
  if constexpr (requires { A::parts_in_turn; }) {
    if (left > A::L) return dot_step<A, R, C>(EndsOfRows<A, R, 1>{rows, left}, 0, column, 0, acc);
  }
  if (left > 0) dot_step<A, R, C>(EndsOfRows<A, R, 0>{rows, left}, 0, column, 0, acc);
}

/// tile[c][r] = row r · column c, of short rows that lie `apart`. A full register of sums is summed in quarters: while
/// lanes of one are added, the next one's products are on their way.
template <class A, int R, int C, int known_steps>
MOE_INLINE void short_dot_tile(const typename A::Weight* first, Index apart, Index depth,
                               const typename A::Register* const* x, typename A::Scalar* tile) {
  using S = typename A::Scalar;
  constexpr int L = lanes<S>;
  if constexpr (R * C < L) {
    Lanes<S> acc[R][C] = {};
    add_dot_products<A, R, C, known_steps>({first, apart}, depth, x, acc);
    sum_lanes<S, R, C>(acc, tile);
  } else {
    static_assert(R * C == L && 4 % C == 0);
    constexpr int groups = L / 4, rows = 4 / C;
    Lanes<S> sum[L];
    unroll<groups>([&](auto g) __attribute__((always_inline)) {
      Lanes<S> acc[rows][C] = {};
      add_dot_products<A, rows, C, known_steps>({first + g * apart, groups * apart}, depth, x, acc);
      Lanes<S> quarter[4];
      unroll<4>([&](auto q) { quarter[q] = acc[q % rows][q / rows]; });
      sum[g] = sums_of_quarters<S>(quarter);
    });
    store(tile, sums<S, groups, groups / 2>(sum));
  }
}

/// dot_products() of C columns and short rows, at least R of them.
template <class A, int R, int C, int known_steps = 0>
MOE_KERNEL void short_dot_products(const Rows<typename A::Weight>& rows, const Columns<A>& x, typename A::Scalar* out,
                                   Index stride) {
  const Index apart = rows.odd - rows.even, count = rows.count, depth = x.depth;
  eigen_assert(2 * apart == rows.pair_step);  // of one matrix
  typename A::Register copies[C][std::max(1, known_steps) * A::parts];
  const typename A::Register* column[C];
  for (int c = 0; c < C; ++c) {
    column[c] = known_steps > 0 ? copies[c] : x.column(c);
    for (int k = 0; k < known_steps * A::parts; ++k) copies[c][k] = x.column(c)[k];
  }
  for (Index row = 0; row < count; row += R) {
    const Index first = std::min(row, count - R);  // the last tile begins with rows of the one before
    if constexpr (C == 1) {
      short_dot_tile<A, R, C, known_steps>(rows.even + first * apart, apart, depth, column, out + first);
    } else {
      typename A::Scalar tile[C * R];
      short_dot_tile<A, R, C, known_steps>(rows.even + first * apart, apart, depth, column, tile);
      for (int c = 0; c < C; ++c) std::memcpy(out + first + c * stride, tile + c * R, R * sizeof(tile[0]));
    }
  }
}

/// Numbers up to which a row is short: docs/performance.md, "Tiny layers". Of longer ones, side by side, memory sees
/// many short streams, which costs weights of 16 bits a tenth.
inline constexpr Index short_depth = 512;

/// Rows that are taken to C columns at once where they are short: as many as a register of sums has room for, since to
/// sum a register's lanes costs more than to multiply a short row.
template <class A, int C>
inline constexpr int short_rows = int(A::L) / C;

/// dot_products() of C columns and short rows.
template <class A, int C>
void short_dot_products(const Rows<typename A::Weight>& rows, const Columns<A>& x, typename A::Scalar* out,
                        Index stride) {
  constexpr int many = short_rows<A, C>, few = std::max(1, many / 4);
  if (rows.count < few) return short_dot_products<A, 1, C>(rows, x, out, stride);
  if (rows.count < many) return short_dot_products<A, few, C>(rows, x, out, stride);
  if constexpr (C == 1) {  // what loops over one step or two costs as much as these
    if (x.depth == A::step) return short_dot_products<A, many, C, 1>(rows, x, out, stride);
    if (x.depth == 2 * A::step) return short_dot_products<A, many, C, 2>(rows, x, out, stride);
  }
  short_dot_products<A, many, C>(rows, x, out, stride);
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

/// dot_products() of any columns and rows. The rows of a tile lie far apart, one in each of as many bands, so that each
/// band comes from memory as one long stream; once, and from the cache for all further columns.
template <class A, int max_columns>
void long_dot_products(const Rows<typename A::Weight>& rows, const Columns<A>& x, typename A::Scalar* out,
                       Index stride) {
  using Register = typename A::Register;
  // Half of L2 for the columns of a group, which stay while a group of rows passes by, which stays in the last cache.
  const Index column_bytes = x.stride() * Index(sizeof(Register));
  const Index group = std::max<Index>(1, Eigen::l2CacheSize() / 2 / column_bytes / max_columns) * max_columns;
  if (x.count > group) {
    for (Index top = 0; top < rows.count; top += rows_in_group) {
      const auto some_rows = rows.middle(top, std::min(rows_in_group, rows.count - top));
      for (Index left = 0; left < x.count; left += group) {
        const Columns<A> some = x.from(left, std::min(group, x.count - left));
        long_dot_products<A, max_columns>(some_rows, some, out + top + left * stride, stride);
      }
    }
    return;
  }
  constexpr int at_once = dot_columns_of_several(max_columns);
  const Index blocks = x.count <= max_columns ? 1 : (x.count + at_once - 1) / at_once;
  const Index whole_steps = x.depth / A::step, steps = x.steps();

  const auto across = [&]<int R>(std::integral_constant<int, R>, Index row, Index apart) {
    RowsInPlace<A, R> in_place;
    for (int r = 0; r < R; ++r) in_place.row[r] = rows[row + r * apart];
    if (blocks > 1) {
      in_place.ahead = row + 1 < apart ? rows[row + 1] - rows[row] : 0;
    } else {
      in_place.ahead = 2048 / Index(sizeof(typename A::Weight));
    }
    Tails<A, R> tails;
    RowsInPlace<A, R> tail;
    if (whole_steps < steps) tail = tails.after(in_place, x.depth);
    for (Index b = 0; b < blocks; ++b) {
      const Index column = x.count * b / blocks, n = x.count * (b + 1) / blocks - column;
      in_place.period = blocks * in_place.steps_of_line;  // each block of columns fetches its share of the rows below
      in_place.countdown = b * in_place.steps_of_line;
      typename A::Scalar dots[R * max_columns];
      dot_tile_of<A, R, max_columns>(n, in_place, whole_steps, whole_steps < steps ? &tail : nullptr, x, column, dots);
      for (Index c = 0; c < n; ++c) {
        for (Index r = 0; r < R; ++r) out[row + r * apart + (column + c) * stride] = dots[c * R + r];
      }
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

}  // namespace detail

/// out[r + c · stride] = row r · column c.
template <class A>
MOE_INLINE void dot_products(const Rows<typename A::Weight>& rows, const Columns<A>& x, typename A::Scalar* out,
                             Index stride) {
  if (rows.count == 0 || x.count == 0) return;
  if constexpr (max_dot_columns > 1) {
    const bool short_rows = x.depth <= detail::short_depth;
    if constexpr (detail::short_rows<A, 1> > dot_rows(1)) {
      if (x.count == 1 && short_rows) return detail::short_dot_products<A, 1>(rows, x, out, stride);
    }
    if constexpr (detail::short_rows<A, 2> > dot_rows(2)) {
      if (x.count == 2 && short_rows) return detail::short_dot_products<A, 2>(rows, x, out, stride);
    }
  }
  detail::long_dot_products<A, max_dot_columns>(rows, x, out, stride);
}

}  // namespace moe::inline MOE_TARGET::kernels
