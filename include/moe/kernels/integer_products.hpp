/// @file  Products of coded weights and coded activations: integers of 8 bits, scaled and summed in float.
///
/// Few columns are register_products.hpp. Many meet a panel of rows that were decoded to integers, in L1.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#include "moe/core/quantized.hpp"
#include "moe/core/types.hpp"
#include "moe/kernels/activation_codes.hpp"
#include "moe/kernels/arithmetic.hpp"
#include "moe/kernels/blocks.hpp"
#include "moe/kernels/byte_products.hpp"
#include "moe/kernels/byte_squares.hpp"
#include "moe/kernels/columns.hpp"
#include "moe/kernels/lanes.hpp"
#include "moe/kernels/multiply_add.hpp"
#include "moe/kernels/packed_products.hpp"
#include "moe/kernels/register_products.hpp"
#include "moe/kernels/rows.hpp"
#include "moe/kernels/shuffle.hpp"
#include "moe/kernels/transpose.hpp"

namespace moe::inline MOE_TARGET::kernels {

namespace detail {

/// A piece of a row as integers; zeros fill up the last step.
inline void take_integers(const Rows<Quantized>& rows, Index row, Index first, Index count, std::int8_t* codes,
                          float* scales, float* minima) {
  const IntegerForm& form = *rows.even->format().integers;
  rows.take(row, first, count, codes, scales, minima);
  const Index whole = round_up(count, ActivationCodes::size);
  if (count == whole) return;
  const Index filled = (count + form.group - 1) / form.group, all = whole / form.group;
  std::fill(codes + count, codes + whole, std::int8_t(0));
  std::fill(scales + filled, scales + all, 0.F);
  if (form.has_minima) std::fill(minima + filled, minima + all, 0.F);
}

/// Columns that rows meet before the next ones.
inline constexpr Index integer_columns = 32;

/// Numbers between the sums of columns of so many steps: a register may be read behind the last one.
inline Index sums_stride(Index steps) {
  return round_up(steps * ActivationCodes::size, NumberFormat::max_block) / 16 + lanes<float>;
}

/// Σ x of the groups of some columns, then zeros.
template <Index group>
void gather_sums(const ActivationCodes* const* column, Index columns, Index steps, float* sums) {
  constexpr Index some = ActivationCodes::size / group;
  const Index stride = sums_stride(steps);
  for (Index c = 0; c < columns; ++c) {
    float* to = sums + c * stride;
    for (Index s = 0; s < steps; ++s, to += some) {
      std::memcpy(to, column[c][s].sums + (group == 16 ? 0 : 4), std::size_t(some) * sizeof(float));
    }
    std::fill(to, sums + (c + 1) * stride, 0.F);
  }
}

/// integer_products() of columns one by one.
template <Index group, bool has_minima>
void integer_dot_products(const Rows<Quantized>& rows, const Columns<Fast<Quantized>>& x, float* sums, float* out,
                          Index stride) {
  // A matrix with a factor of its own multiplies it into the scales that are taken.
  const auto multiply = rows.even->is_multiplied_in_place() ? rows.even->format().integers->multiply : nullptr;
  for (Index left = 0; left < x.count; left += integer_columns) {
    const Index columns = std::min(integer_columns, x.count - left);
    const ActivationCodes* column[integer_columns];
    for (Index c = 0; c < columns; ++c) column[c] = reinterpret_cast<const ActivationCodes*>(x.column(left + c));
    if constexpr (has_minima) gather_sums<group>(column, columns, x.steps(), sums);
    const CodedColumns some{x.depth, columns, column, sums, sums_stride(x.steps())};
    float* const to = out + left * stride;
    if (multiply != nullptr) {
      multiply(*rows.even, rows.first, rows.count, some, to, stride);
    } else {
      register_products<TakenRow<group, has_minima>>(*rows.even, rows.first, rows.count, some, to, stride);
    }
  }
}

/// Rows of a tile of integers, which meets so many registers of columns.
#if defined(__OPTIMIZE__)
inline constexpr int integer_panel = num_registers == 32 ? 12 : 4;
#else
inline constexpr int integer_panel = 4;
#endif
inline constexpr int widest_integer_tile = num_registers == 32 ? 2 : 1;
/// Columns that a panel of rows meets before the next one: their blocks stay in L2.
inline constexpr Index columns_of_panel = 128;
inline constexpr Index panel_numbers = num_registers == 32 ? 2048 : 1024;

/// From one row of a panel to the next: never a multiple of 4 KB, where rows would collide in L1.
inline constexpr Index panel_stride = panel_numbers + 64;
/// The same of scales.
inline constexpr Index panel_scales = panel_numbers / 16 + 16;

/// Some rows as integers, as a tile reads them.
struct IntegerPanel {
  alignas(64) std::int8_t codes[integer_panel][panel_stride];
  alignas(64) float scales[integer_panel][panel_scales];
  alignas(64) float minima[integer_panel][panel_scales];
};

/// The next four codes of a row in each lane, or the next eight in each two.
template <int parts>
MOE_INLINE ByteRegister codes_in_lanes(const std::int8_t* codes) {
  using Unit = std::conditional_t<parts == 1, std::int32_t, std::int64_t>;
  return (ByteRegister)(load_as<Unit>(codes) - typename VectorOf<Unit, register_bytes>::type{});
}

/// Eight codes of a row, and of the next one.
MOE_INLINE BytesOf<16> codes_of_two_rows(const std::int8_t* codes) {
  using Eights = VectorOf<std::int64_t, 16>::type;
  return (BytesOf<16>)Eights{load_as<std::int64_t>(codes), load_as<std::int64_t>(codes + panel_stride)};
}

/// products[r][v] += a group of row r · that of block v, from register `first` of its codes on.
template <int units, bool nonnegative, int parts, int R, int V>
MOE_INLINE void add_group(IntegersOf<register_bytes> (&products)[R][V], const std::int8_t* codes,
                          const ManyActivationCodes<parts>* its, int first, Index stride) {
  if constexpr (has_byte_squares && parts == 1) {
    static_assert(lanes<float> == 4 && R % 2 == 0 && !has_starts);
    using Ints = IntegersOf<register_bytes>;
    // Two rows and two columns meet at once: products[r] are of columns 0 and 1, products[r + 1] of 2 and 3.
    unroll<units / 2>([&](auto u) __attribute__((always_inline)) {
      ByteRegister left[V], right[V];
      unroll<V>([&](auto v) {
        const auto a = load_as<Lanes<float>>(its[v * stride].codes[first + 2 * u]);
        const auto b = load_as<Lanes<float>>(its[v * stride].codes[first + 2 * u + 1]);
        left[v] = (ByteRegister)shuffle<float, 0, 4, 1, 5>(a, b);
        right[v] = (ByteRegister)shuffle<float, 2, 6, 3, 7>(a, b);
      });
      unroll<R / 2>([&](auto half) __attribute__((always_inline)) {
        constexpr int r = 2 * half;
        const auto its_codes = codes_of_two_rows(codes + r * panel_stride + 8 * u);
        unroll<V>([&](auto v) __attribute__((always_inline)) {
          products[r][v] = added_byte_squares(products[r][v], its_codes, left[v]);
          products[r + 1][v] = added_byte_squares(products[r + 1][v], its_codes, right[v]);
        });
      });
    });
    unroll<R / 2>([&](auto half) __attribute__((always_inline)) {
      unroll<V>([&](auto v) __attribute__((always_inline)) {
        auto a = (Lanes<float>)products[2 * half][v], b = (Lanes<float>)products[2 * half + 1][v];
        swap_blocks<float, 2>(a, b);
        products[2 * half][v] = (Ints)a;
        products[2 * half + 1][v] = (Ints)b;
      });
    });
  } else {
    unroll<units>([&](auto u) __attribute__((always_inline)) {
      ByteRegister column[V];
      unroll<V>([&](auto v) { column[v] = load_as<ByteRegister>(its[v * stride].codes[first + u]); });
      unroll<R>([&](auto r) __attribute__((always_inline)) {
        const auto its_codes = codes_in_lanes<parts>(codes + r * panel_stride + 4 * parts * u);
        unroll<V>([&](auto v) __attribute__((always_inline)) {
          products[r][v] = added_byte_products<nonnegative>(products[r][v], its_codes, column[v]);
        });
      });
    });
  }
}

/// tile[R][V registers] (+)= rows · so many blocks of columns, each `stride` behind the other, of whose registers each
/// column has `parts` lanes.
template <int R, int V, int parts, Index group, bool has_minima>
MOE_KERNEL void integer_tile(const std::int8_t* codes, const float* scales, const float* minima, Index steps,
                             const ManyActivationCodes<parts>* x, Index stride, bool add, float* tile,
                             Index tile_stride) {
  constexpr int L = lanes<float>, units = int(group / 4) / parts;
  constexpr bool starts = has_starts && !has_minima;
  using Ints = IntegersOf<register_bytes>;
  Lanes<float> sum[R][V] = {};
  if (add) {
    unroll<R>(
        [&](auto r) { unroll<V>([&](auto v) { sum[r][v] = load_as<Lanes<float>>(tile + v * tile_stride + r * L); }); });
  }
  for (Index step = 0; step < steps; ++step, codes += ActivationCodes::size) {
    for (int g = 0; g < int(ActivationCodes::size / group); ++g) {
      constexpr int first = group == 16 ? 0 : 4;  // of the sums
      const ManyActivationCodes<parts>* const its = x + step;
      Ints products[R][V] = {};
      if constexpr (starts) {
        unroll<V>([&](auto v) {
          const auto start = load_as<Ints>(its[v * stride].starts[first + g]);
          unroll<R>([&](auto r) { products[r][v] = start; });
        });
      }
      add_group<units, has_minima>(products, codes + g * group, its, g * units, stride);
      unroll<V>([&](auto v) __attribute__((always_inline)) {
        const auto scale = load_as<Lanes<float>>(its[v * stride].scales[g * group / 32]);
        unroll<R>([&](auto r) __attribute__((always_inline)) {
          sum[r][v] = multiply_add(__builtin_convertvector(products[r][v], Lanes<float>),
                                   scales[r * panel_scales + g] * scale, sum[r][v]);
        });
        if constexpr (has_minima) {
          const auto total = load_as<Lanes<float>>(its[v * stride].sums[first + g]);
          unroll<R>([&](auto r) __attribute__((always_inline)) {
            sum[r][v] = multiply_add(minima[r * panel_scales + g] - Lanes<float>{}, total, sum[r][v]);
          });
        }
      });
    }
    scales += ActivationCodes::size / group;
    minima += ActivationCodes::size / group;
  }
  unroll<R>([&](auto r) { unroll<V>([&](auto v) { store(tile + v * tile_stride + r * L, sum[r][v]); }); });
}

/// What the products of blocks work in.
struct PanelRoom {
  IntegerPanel panel;
  alignas(64) float tiles[columns_of_panel / lanes<float>][integer_panel * lanes<float>];
};

/// out[r + c · stride] = the sum of tile[r][parts · c …] of so many rows and columns, turned around.
template <int parts>
MOE_INLINE void put_turned(const float* tile, Index rows, Index columns, float* out, Index stride) {
  constexpr int L = lanes<float>, R = integer_panel;
  unroll<(R + L - 1) / L>([&](auto q) __attribute__((always_inline)) {
    constexpr int first = q * L, height = std::min(L, R - first);
    Lanes<float> square[L] = {};
    unroll<height>([&](auto r) { square[r] = load_as<Lanes<float>>(tile + (first + r) * L); });
    transpose<float>(square);
    if constexpr (parts == 2) unroll<L / 2>([&](auto c) { square[c] = square[2 * c] + square[2 * c + 1]; });
    const Index some = std::clamp<Index>(rows - first, 0, height);
    for (Index c = 0; c < columns; ++c) {
      float* const to = out + first + c * stride;
      if (some == height) {
        std::memcpy(to, &square[c], height * sizeof(float));
      } else {
        std::memcpy(to, &square[c], std::size_t(some) * sizeof(float));
      }
    }
  });
}

/// integer_products() of columns in blocks.
template <Index group, bool has_minima>
void integer_panel_products(const Rows<Quantized>& rows, const Blocks<Fast<Quantized>>& x, PanelRoom& room, float* out,
                            Index stride) {
  constexpr int R = integer_panel, V = widest_integer_tile, L = lanes<float>;
  IntegerPanel& panel = room.panel;
  for (Index left = 0; left < x.count; left += columns_of_panel) {
    const Index columns = std::min(columns_of_panel, x.count - left), num_blocks = (columns + L - 1) / L;
    for (Index row = 0; row < rows.count; row += R) {
      const Index height = std::min<Index>(R, rows.count - row);  // what has no row is computed, and not used
      for (Index first = 0; first < x.depth; first += panel_numbers) {
        const Index count = std::min(panel_numbers, x.depth - first);
        const Index steps = (count + ActivationCodes::size - 1) / ActivationCodes::size;
        for (Index r = 0; r < height; ++r) {
          take_integers(rows, row + r, first, count, panel.codes[r], panel.scales[r], panel.minima[r]);
          if constexpr (has_starts && !has_minima) {
            for (Index i = 0; i < steps * ActivationCodes::size; ++i) panel.codes[r][i] ^= std::int8_t(-128);
          }
          rows.fetch(row + R + r, first, count);
        }
        const auto tile = [&]<int some, int registers, int parts>(const ManyActivationCodes<parts>* its, Index block) {
          for (int r = 0; r < R; r += some) {
            integer_tile<some, registers, parts, group, has_minima>(
                panel.codes[r], panel.scales[r], panel.minima[r], steps, its + first / ActivationCodes::size, x.steps(),
                first > 0, room.tiles[block] + r * L, R * L);
          }
        };
        const Index first_block = left / L;
        const bool ends_in_half = x.is_half(first_block + num_blocks - 1);
        const Index whole = num_blocks - ends_in_half;
        Index block = 0;
        for (; block + V <= whole; block += V) {
          tile.template operator()<R / V, V, 1>(x.block(first_block + block), block);
        }
        for (; block < whole; ++block) tile.template operator()<R, 1, 1>(x.block(first_block + block), block);
        if (ends_in_half) tile.template operator()<R, 1, 2>(x.half_block(first_block + block), block);
      }
      for (Index block = 0; block < num_blocks; ++block) {
        const auto put = x.is_half(left / L + block) ? put_turned<2> : put_turned<1>;
        put(room.tiles[block], height, std::min<Index>(L, columns - block * L), out + row + (left + block * L) * stride,
            stride);
      }
    }
  }
}

/// Calls f with a group's size and whether there are minima as constants.
template <class F>
void with_form(const IntegerForm& form, const F& f) {
  if (form.group == 32) return form.has_minima ? f.template operator()<32, true>() : f.template operator()<32, false>();
  form.has_minima ? f.template operator()<16, true>() : f.template operator()<16, false>();
}

}  // namespace detail

/// Registers that integer_products() works in.
inline Index integer_room(Index depth) {
  const Index steps = (depth + ActivationCodes::size - 1) / ActivationCodes::size;
  const std::size_t sums = std::size_t(detail::integer_columns * detail::sums_stride(steps)) * sizeof(float);
  return Index(std::max(sums, sizeof(detail::PanelRoom)) / register_bytes) + 1;
}

/// out[r + c · stride] = row r of weights · column c of x.
template <class A = Fast<Quantized>>
void integer_products(const Rows<Quantized>& rows, const Columns<A>& x, Lanes<float>* room, float* out, Index stride) {
  eigen_assert(rows.odd == nullptr);
  detail::with_form(*rows.even->integers(), [&]<Index group, bool has_minima>() {
    detail::integer_dot_products<group, has_minima>(rows, x, reinterpret_cast<float*>(room), out, stride);
  });
}

/// The same of columns in blocks.
template <class A = Fast<Quantized>>
void integer_products(const Rows<Quantized>& rows, const Blocks<A>& x, Lanes<float>* room, float* out, Index stride) {
  eigen_assert(rows.odd == nullptr);
  const auto multiply = rows.even->format().integers->multiply_blocks;
  if (multiply != nullptr && rows.even->is_multiplied_in_place()) {
    return multiply(*rows.even, rows.first, rows.count, {x.depth, x.count, x.block(0)}, out, stride);
  }
  detail::with_form(*rows.even->integers(), [&]<Index group, bool has_minima>() {
    auto& its = *reinterpret_cast<detail::PanelRoom*>(room);
    detail::integer_panel_products<group, has_minima>(rows, x, its, out, stride);
  });
}

}  // namespace moe::inline MOE_TARGET::kernels
