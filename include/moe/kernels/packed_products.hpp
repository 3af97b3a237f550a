/// @file  Products of coded rows that lie interleaved, so that lanes are rows.
///
/// Nothing is summed across lanes, and codes that were taken to a register meet all tokens of a tile. A sum has one
/// order, group after group, whatever rows, tokens and threads there are.
#pragma once

#include <algorithm>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "moe/core/quantized.hpp"
#include "moe/core/types.hpp"
#include "moe/kernels/activation_codes.hpp"
#include "moe/kernels/byte_products.hpp"
#include "moe/kernels/lanes.hpp"
#include "moe/kernels/multiply_add.hpp"
#include "moe/kernels/register_products.hpp"

namespace moe::inline MOE_TARGET::kernels {

/// Rows of a panel, whose numbers lie side by side: a register of 64 bytes has four neighbours of each, as have two of
/// 32 bytes or four of 16.
inline constexpr Index packed_rows = 16;

/// Panels of so many rows; the last may have room for more.
constexpr Index panels_of(Index rows) { return (rows + packed_rows - 1) / packed_rows; }

/// Columns in blocks: block b is `steps()` of them, the last one half of one if half of the columns have room there.
struct CodedBlocks {
  Index depth, count;
  const ManyActivationCodes<1>* first;

  Index steps() const { return (depth + ActivationCodes::size - 1) / ActivationCodes::size; }
};

/// What is asked of the codes and scales of a panel:
///
///   P::numbers, P::scale_bytes   of a block of each row, and the bytes of its scales, of all rows
///   P::group, P::code_bytes      neighbours that share a scale, 16 or 32, and the bytes of their codes, of all rows
///   P::has_minima                then codes are not negative; or else minima are 0
///   P::codes<u>(from)            four neighbours, the u-th of the group, of as many rows as a register has lanes:
///   their
///                                codes times P::times, and, where has_starts and no minima, plus 128
///   P::scale(block, g, row)      of group g of a block, of as many rows, from `row` on
///   P::minimum(block, g, row)    the same, where has_minima
template <class P>
concept PackedForm = requires(const std::byte* from, Index g) {
  { P::template codes<0>(from) } -> std::convertible_to<ByteRegister>;
  { P::scale(from, g, g) } -> std::convertible_to<Lanes<float>>;
  requires P::group == 16 || P::group == 32;
  requires P::numbers == P::group || P::numbers % ActivationCodes::size == 0;
};

namespace detail {

/// Numbers that a tile sums: registers of rows times tokens. As many integers are summed beside them.
#if defined(__OPTIMIZE__)
inline constexpr int packed_sums = num_registers == 32 ? 8 : 4;
#else
inline constexpr int packed_sums = 1;
#endif

/// Columns that a tile meets, as they lie.
template <int num>
struct PackedColumns {
  static constexpr int count = num;
  const ActivationCodes* column[num];

  const std::int8_t* codes(Index step, int unit, int t) const { return column[t][step].codes + 4 * unit; }
  float scale(Index step, int half, int t) const { return column[t][step].scales[8 * half]; }
  float sum(Index step, int which, int t) const { return column[t][step].sums[which]; }
  std::int32_t start(Index step, int which, int t) const { return column[t][step].starts_of_group[which]; }
};

/// The same of a block.
template <int num, int parts>
struct PackedBlock {
  static constexpr int count = num;
  const ManyActivationCodes<parts>* block;
  Index first;  // column

  const std::int8_t* codes(Index step, int unit, int t) const {
    return block[step].codes[unit / parts][first + t] + 4 * (unit % parts);
  }
  float scale(Index step, int half, int t) const { return block[step].scales[half][(first + t) * parts]; }
  float sum(Index step, int which, int t) const { return block[step].sums[which][(first + t) * parts]; }
  std::int32_t start(Index step, int which, int t) const {
    std::int32_t all = 0;
    for (int p = 0; p < parts; ++p) all += block[step].starts[which][(first + t) * parts + p];
    return all;
  }
};

/// Four codes of a token in each lane.
MOE_INLINE ByteRegister four_codes(const std::int8_t* codes) {
  return (ByteRegister)(load_as<std::int32_t>(codes) - IntegersOf<register_bytes>{});
}

/// Where codes and scales of a panel begin.
struct PackedPanel {
  const std::byte *codes, *scales;
};

/// sum[v][t] += so many groups of the panel, from the first-th of step `step` on, · the tokens. Their integers are
/// summed side by side, for one sum would wait for itself.
template <class P, int V, int first, int groups, class Tokens>
MOE_INLINE void add_groups(const PackedPanel& panel, Index row, Index step, const Tokens& x,
                           Lanes<float> (&sum)[V][Tokens::count]) {
  using Ints = IntegersOf<register_bytes>;
  constexpr int T = Tokens::count, L = lanes<float>, units = int(P::group / 4), in_step = 64 / int(P::group);
  constexpr int first_sum = P::group == 16 ? first : 4 + first;
  const std::byte* const codes = panel.codes + (step * in_step + first) * P::code_bytes + row * 4;
  Ints products[groups][V][T] = {};
  if constexpr (has_starts && !P::has_minima) {
    unroll<groups>([&](auto g) __attribute__((always_inline)) {
      unroll<T>([&](auto t) __attribute__((always_inline)) {
        const Ints start = x.start(step, first_sum + g, t) - Ints{};
        unroll<V>([&](auto v) { products[g][v][t] = start; });
      });
    });
  }
  unroll<units>([&](auto u) __attribute__((always_inline)) {
    unroll<groups>([&](auto g) __attribute__((always_inline)) {
      unroll<V>([&](auto v) __attribute__((always_inline)) {
        const ByteWeights<has_starts || P::has_minima, register_bytes> w(
            P::template codes<u>(codes + g * P::code_bytes + v * int(register_bytes)));
        unroll<T>([&](auto t) __attribute__((always_inline)) {
          auto& its = products[g][v][t];
          its = byte_products(w, four_codes(x.codes(step, (first + g) * units + u, t)), its);
        });
      });
    });
  });
  unroll<groups>([&](auto g) __attribute__((always_inline)) {
    constexpr int in = first + g, half = in * int(P::group) / 32;
    constexpr Index in_block = P::numbers / 64;  // steps, or 0
    const Index block = in_block == 0 ? step * in_step + in : step / std::max<Index>(1, in_block);
    const Index group = in_block == 0 ? 0 : step % std::max<Index>(1, in_block) * in_step + in;
    const std::byte* const scales = panel.scales + block * P::scale_bytes;
    unroll<V>([&](auto v) __attribute__((always_inline)) {
      const Lanes<float> scale = P::scale(scales, group, row + v * L) * (1.F / P::times);
      unroll<T>([&](auto t) __attribute__((always_inline)) {
        sum[v][t] = multiply_add(__builtin_convertvector(products[g][v][t], Lanes<float>),
                                 scale * x.scale(step, half, t), sum[v][t]);
      });
      if constexpr (P::has_minima) {
        const Lanes<float> minimum = P::minimum(scales, group, row + v * L);
        unroll<T>([&](auto t) __attribute__((always_inline)) {
          sum[v][t] = multiply_add(minimum, x.sum(step, first_sum + g, t) - Lanes<float>{}, sum[v][t]);
        });
      }
    });
  });
}

/// tile[t][row …] = V registers of rows of the panel, from `row` on, · the tokens. Fetches `lines` lines of the cache a
/// step from `next` on.
template <PackedForm P, int V, class Tokens>
MOE_KERNEL void packed_tile(const PackedPanel& panel, Index row, Index depth, const Tokens& x, const std::byte* next,
                            Index lines, float* tile) {
  constexpr int T = Tokens::count, L = lanes<float>, in_step = 64 / int(P::group), at_once = 2;
  Lanes<float> sum[V][T] = {};
  const Index steps = depth / ActivationCodes::size;
  for (Index step = 0; step < steps; ++step) {
    for (Index i = 0; i < lines; ++i) __builtin_prefetch(next + 64 * i);
    next += 64 * lines;
    unroll<in_step / at_once>([&](auto i) { add_groups<P, V, i * at_once, at_once>(panel, row, step, x, sum); });
  }
  if (depth % ActivationCodes::size != 0) add_groups<P, V, 0, in_step / 2>(panel, row, steps, x, sum);
  unroll<V>([&](auto v) { unroll<T>([&](auto t) { store(tile + t * packed_rows + row + v * L, sum[v][t]); }); });
}

/// tile[t] = a whole panel · the tokens.
template <PackedForm P, class Tokens>
void whole_packed_tile(const PackedPanel& panel, Index depth, const Tokens& x, Index share, Index shares, float* tile) {
  constexpr int all = int(packed_rows) / lanes<float>, V = std::max(1, std::min(all, packed_sums / Tokens::count));
  constexpr Index step_bytes = P::code_bytes * 64 / P::group;
  // Tiles that meet the same panel fetch a part each of the next one. A single tile reads on and on, as it is best.
  const Index lines = shares == 1 ? 0 : (step_bytes / 64 + shares - 1) / shares,
              panel_bytes = depth / P::group * P::code_bytes;
  const std::byte* const next = panel.codes + panel_bytes + share * (depth / 64 * lines * 64);
  for (Index row = 0; row < packed_rows; row += V * lanes<float>) {
    packed_tile<P, V>(panel, row, depth, x, next, row == 0 ? lines : 0, tile);
  }
}

/// out[r + c · stride] = tile[c][skip + r] of so many rows and columns.
inline void put_packed(const float* tile, Index skip, Index rows, Index columns, float* out, Index stride) {
  for (Index c = 0; c < columns; ++c, tile += packed_rows, out += stride) {
    if (rows == packed_rows) {
      std::memcpy(out, tile, packed_rows * sizeof(float));
    } else {
      std::memcpy(out, tile + skip, std::size_t(rows) * sizeof(float));
    }
  }
}

/// f(panel, rows of it that are left out, rows that are not, where the first of these goes) for rows [first, first +
/// rows) of a matrix.
template <PackedForm P, class F>
void each_packed_panel(const QuantizedMatrix& matrix, Index first, Index rows, float* out, const F& f) {
  const Index begin = matrix.stored_row(first), col = matrix.stored_col(0);
  for (Index done = 0; done < rows;) {
    const Index skip = (begin + done) % packed_rows, some = std::min(packed_rows - skip, rows - done);
    f(PackedPanel{matrix.codes.row(begin + done) + col / P::group * P::code_bytes,
                  matrix.scales.row(begin + done) + col / P::numbers * P::scale_bytes},
      skip, some, out + done);
    done += some;
  }
}

/// Columns of a panel that a tile meets, if there are as many.
inline constexpr int packed_columns = std::min(4, packed_sums);

}  // namespace detail

/// out[r + c · stride] = row first + r of the matrix · column c: IntegerForm::multiply.
template <PackedForm P>
void packed_products(const QuantizedMatrix& matrix, Index first, Index rows, const CodedColumns& x, float* out,
                     Index stride) {
  constexpr int most = detail::packed_columns;
  const Index shares = (x.count + most - 1) / most;
  detail::each_packed_panel<P>(matrix, first, rows, out, [&](const auto& panel, Index skip, Index some, float* to) {
    const auto tile = [&]<int T>(Index c, Index columns) {
      detail::PackedColumns<T> its;
      for (Index t = 0; t < T; ++t) its.column[t] = x.column[c + std::min(t, columns - 1)];
      alignas(64) float numbers[T * packed_rows];
      detail::whole_packed_tile<P>(panel, x.depth, its, c / most, shares, numbers);
      detail::put_packed(numbers, skip, some, columns, to + c * stride, stride);
    };
    for (Index c = 0; c < x.count; c += most) {
      const Index columns = std::min<Index>(most, x.count - c);
      if (columns == 1) {
        tile.template operator()<1>(c, columns);
      } else if (columns == 2) {
        tile.template operator()<std::min(2, most)>(c, columns);
      } else {
        tile.template operator()<most>(c, columns);
      }
    }
  });
}

/// The same of columns in blocks: IntegerForm::multiply_blocks.
template <PackedForm P>
void packed_block_products(const QuantizedMatrix& matrix, Index first, Index rows, const CodedBlocks& x, float* out,
                           Index stride) {
  constexpr int L = lanes<float>, T = std::min(L, detail::packed_sums), H = std::max(1, std::min(L / 2, T));
  constexpr Index columns_at_once = 128;  // which stay in L2 while panels pass by
  for (Index left = 0; left < x.count; left += columns_at_once) {
    const Index end = std::min(x.count, left + columns_at_once);
    const Index shares = (end - left + T - 1) / T;
    detail::each_packed_panel<P>(matrix, first, rows, out, [&](const auto& panel, Index skip, Index some, float* to) {
      alignas(64) float numbers[T * packed_rows];
      for (Index c = left; c < end;) {
        const auto* const block = x.first + c / L * x.steps();
        const Index share = (c - left) / T;
        if (x.count - c / L * L <= L / 2) {
          const auto* const half = reinterpret_cast<const ManyActivationCodes<2>*>(block);
          const detail::PackedBlock<H, 2> its{half, c % L};
          detail::whole_packed_tile<P>(panel, x.depth, its, share, shares, numbers);
          detail::put_packed(numbers, skip, some, std::min<Index>(H, end - c), to + c * stride, stride);
          c += H;
        } else {
          detail::whole_packed_tile<P>(panel, x.depth, detail::PackedBlock<T, 1>{block, c % L}, share, shares, numbers);
          detail::put_packed(numbers, skip, some, std::min<Index>(T, end - c), to + c * stride, stride);
          c += T;
        }
      }
    });
  }
}

}  // namespace moe::inline MOE_TARGET::kernels
