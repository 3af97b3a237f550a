/// @file  Products of coded weights and coded activations: integers of 8 bits, scaled and summed in float.
///
/// Rows are decoded to integers a piece at a time, in L1, and meet all columns there. A sum of lanes has one order,
/// whatever rows and columns are computed together.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <utility>

#include "moe/core/quantized.hpp"
#include "moe/core/types.hpp"
#include "moe/kernels/activation_codes.hpp"
#include "moe/kernels/arithmetic.hpp"
#include "moe/kernels/byte_products.hpp"
#include "moe/kernels/columns.hpp"
#include "moe/kernels/dot_tile.hpp"
#include "moe/kernels/lanes.hpp"
#include "moe/kernels/load_padded.hpp"
#include "moe/kernels/multiply_add.hpp"
#include "moe/kernels/rows.hpp"
#include "moe/kernels/shuffle.hpp"
#include "moe/kernels/transpose.hpp"

namespace moe::inline MOE_TARGET::kernels {

using ByteRegister = BytesOf<register_bytes>;

namespace detail {

/// Numbers of a row that are decoded at a time, of so many rows; columns that they meet before they are decoded again.
inline constexpr Index integers_at_once = 2048;
inline constexpr int integer_rows = 4;
inline constexpr Index integer_columns = 32;
static_assert(integers_at_once % NumberFormat::max_block == 0);

/// A piece of some rows, as integers; zeros fill up the last step.
struct IntegerPiece {
  static constexpr Index groups = integers_at_once / 16;

  alignas(64) std::int8_t codes[integer_rows][integers_at_once + 64];  // 64: rows that are 2 KB apart would collide
  alignas(64) float scales[integer_rows][groups + 16];                 // 16: registers are read where two are used
  alignas(64) float minima[integer_rows][groups];

  void take(const Rows<Quantized>& rows, Index row, Index first, Index count, const IntegerForm& form, int r) {
    rows.take(row, first, count, codes[r], scales[r], minima[r]);
    const Index whole = round_up(count, ActivationCodes::size);
    if (count == whole) return;
    const Index filled = (count + form.group - 1) / form.group, all = whole / form.group;
    std::fill(codes[r] + count, codes[r] + whole, std::int8_t(0));
    std::fill(scales[r] + filled, scales[r] + all, 0.F);
    if (form.has_minima) std::fill(minima[r] + filled, minima[r] + all, 0.F);
  }
};

/// The scale of each lane of a register of codes, four in a lane.
template <Index group>
MOE_INLINE Lanes<float> scales_of_lanes(const float* scales, Index chunk) {
  constexpr Index numbers = 4 * lanes<float>;
  if constexpr (numbers <= group) {
    return scales[chunk * numbers / group] - Lanes<float>{};
  } else {
    const auto some = load_as<Lanes<float>>(scales + chunk * (numbers / group));
    return [&]<int... i>(std::integer_sequence<int, i...>) __attribute__((always_inline)) {
      return shuffle<float, (4 * i / int(group))...>(some, some);
    }(std::make_integer_sequence<int, lanes<float>>{});
  }
}

/// acc[r][c] += the products of a piece, as far as its steps go.
template <int C, Index group, bool has_minima>
MOE_KERNEL void add_integer_products(const IntegerPiece& piece, Index steps, const ActivationCodes* const* x,
                                     Lanes<float>* acc) {
  constexpr int R = integer_rows, chunks = int(ActivationCodes::size / register_bytes);
  Lanes<float> sum[R][C];
  unroll<R>([&](auto r) { unroll<C>([&](auto c) { sum[r][c] = acc[r * integer_columns + c]; }); });
  const ActivationCodes* column[C];
  unroll<C>([&](auto c) { column[c] = x[c]; });
  for (Index step = 0; step < steps; ++step) {
    unroll<chunks>([&](auto k) __attribute__((always_inline)) {
      unroll<R>([&](auto r) __attribute__((always_inline)) {
        const Index chunk = step * chunks + k;
        const ByteWeights<has_minima, register_bytes> w(
            load_as<ByteRegister>(piece.codes[r] + chunk * Index(register_bytes)));
        const Lanes<float> scale = scales_of_lanes<group>(piece.scales[r], chunk);
        unroll<C>([&](auto c) __attribute__((always_inline)) {
          const ActivationCodes& its = column[c][step];
          const auto products =
              byte_products(w, load_as<ByteRegister>(its.codes + k * register_bytes), its.starts + k * lanes<float>);
          const auto its_scale = load_as<Lanes<float>>(its.scales + k * lanes<float>);
          sum[r][c] = multiply_add(__builtin_convertvector(products, Lanes<float>), scale * its_scale, sum[r][c]);
        });
      });
    });
  }
  unroll<R>([&](auto r) { unroll<C>([&](auto c) { acc[r * integer_columns + c] = sum[r][c]; }); });
}

#if defined(__OPTIMIZE__)
inline constexpr int integer_tile_columns = num_registers == 32 ? 4 : 2;
#else
inline constexpr int integer_tile_columns = 1;
#endif

template <Index group, bool has_minima>
void add_integer_products_of(const IntegerPiece& piece, Index steps, const ActivationCodes* const* x, Index columns,
                             Lanes<float>* acc) {
  constexpr int most = integer_tile_columns;
  const Index tiles = (columns + most - 1) / most;
  for (Index tile = 0; tile < tiles; ++tile) {
    const Index first = columns * tile / tiles, some = columns * (tile + 1) / tiles - first;
    unroll<most>([&](auto before) {
      constexpr int C = before + 1;
      if (some == C) add_integer_products<C, group, has_minima>(piece, steps, x + first, acc + first);
    });
  }
}

/// acc += minimum · Σ x, a group in each lane.
MOE_INLINE void add_minima(const float* minima, const float* sums, Index groups, Lanes<float>& acc) {
  for (Index g = 0; g < groups; g += lanes<float>) {
    const Index left = groups - g;
    const auto its = load_padded<Lanes<float>>(minima + g, left), x = load_padded<Lanes<float>>(sums + g, left);
    acc = multiply_add(its, x, acc);
  }
}

/// What the products of some columns work in.
struct IntegerRoom {
  IntegerPiece piece;
  Lanes<float> acc[integer_rows][integer_columns];
  Lanes<float> acc_of_minima[integer_rows][integer_columns];
  // and, of each column, the sums of groups of 16 at most, as they lie in the depth
};

/// Σ x of the groups of some columns.
template <Index group>
void gather_sums(const ActivationCodes* const* column, Index columns, Index steps, float* sums) {
  constexpr Index some = ActivationCodes::size / group;
  for (Index c = 0; c < columns; ++c) {
    for (Index s = 0; s < steps; ++s, sums += some) {
      std::memcpy(sums, column[c][s].sums + (group == 16 ? 0 : 4), std::size_t(some) * sizeof(float));
    }
  }
}

/// integer_dot_products() of a form.
template <Index group, bool has_minima>
void integer_dot_products(const Rows<Quantized>& rows, const Columns<Fast<Quantized>>& x, IntegerRoom& room, float* out,
                          Index stride) {
  constexpr int R = integer_rows;
  constexpr Index some = ActivationCodes::size / group;
  const IntegerForm& form = *rows.even->integers();
  float* const sums = reinterpret_cast<float*>(&room + 1);
  const Index groups = x.steps() * some;
  for (Index left = 0; left < x.count; left += integer_columns) {
    const Index columns = std::min(integer_columns, x.count - left);
    const ActivationCodes* column[integer_columns];
    for (Index c = 0; c < columns; ++c) column[c] = reinterpret_cast<const ActivationCodes*>(x.column(left + c));
    if constexpr (has_minima) gather_sums<group>(column, columns, x.steps(), sums);
    for (Index row = 0; row < rows.count; row += R) {
      const Index height = std::min<Index>(R, rows.count - row);  // what has no row is computed, and not used
      for (int r = 0; r < R; ++r) {
        std::fill_n(room.acc[r], columns, Lanes<float>{});
        if constexpr (has_minima) std::fill_n(room.acc_of_minima[r], columns, Lanes<float>{});
      }
      for (Index first = 0; first < x.depth; first += integers_at_once) {
        const Index count = std::min(integers_at_once, x.depth - first);
        const Index steps = (count + ActivationCodes::size - 1) / ActivationCodes::size;
        const ActivationCodes* from[integer_columns];
        for (Index c = 0; c < columns; ++c) from[c] = column[c] + first / ActivationCodes::size;
        for (Index r = 0; r < height; ++r) {
          rows.fetch(row + R + r, first, count);
          room.piece.take(rows, row + r, first, count, form, int(r));
        }
        add_integer_products_of<group, has_minima>(room.piece, steps, from, columns, room.acc[0]);
        if constexpr (has_minima) {
          for (Index r = 0; r < height; ++r) {
            for (Index c = 0; c < columns; ++c) {
              add_minima(room.piece.minima[r], sums + c * groups + first / group, steps * some,
                         room.acc_of_minima[r][c]);
            }
          }
        }
      }
      for (Index c = 0; c < columns; ++c) {
        Lanes<float> acc[R][1];
        for (int r = 0; r < R; ++r) {
          acc[r][0] = room.acc[r][c];
          if constexpr (has_minima) acc[r][0] += room.acc_of_minima[r][c];
        }
        float dots[R];
        sum_lanes<float, R, 1>(acc, dots);
        std::copy_n(dots, height, out + row + (left + c) * stride);
      }
    }
  }
}

}  // namespace detail

/// Registers that integer_dot_products() works in.
inline Index integer_room(Index depth) {
  const Index sums = round_up(depth, ActivationCodes::size) / 16 * detail::integer_columns;
  return (Index(sizeof(detail::IntegerRoom)) + sums * Index(sizeof(float))) / Index(register_bytes) + 1;
}

/// out[r + c · stride] = row r of weights · column c of x.
inline void integer_dot_products(const Rows<Quantized>& rows, const Columns<Fast<Quantized>>& x, Lanes<float>* room_at,
                                 float* out, Index stride) {
  eigen_assert(rows.odd == nullptr);
  auto& room = *reinterpret_cast<detail::IntegerRoom*>(room_at);
  const IntegerForm& form = *rows.even->integers();
  if (form.group == 32) {
    if (form.has_minima) return detail::integer_dot_products<32, true>(rows, x, room, out, stride);
    return detail::integer_dot_products<32, false>(rows, x, room, out, stride);
  }
  if (form.has_minima) return detail::integer_dot_products<16, true>(rows, x, room, out, stride);
  detail::integer_dot_products<16, false>(rows, x, room, out, stride);
}

}  // namespace moe::inline MOE_TARGET::kernels
