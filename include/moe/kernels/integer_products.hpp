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
#include "moe/kernels/blocks.hpp"
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

/// A piece of some rows.
struct IntegerPiece {
  static constexpr Index groups = integers_at_once / 16;

  alignas(64) std::int8_t codes[integer_rows][integers_at_once + 64];  // 64: rows that are 2 KB apart would collide
  alignas(64) float scales[integer_rows][groups + 16];                 // 16: registers are read where two are used
  alignas(64) float minima[integer_rows][groups];
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

/// Codes of the rows below, of which a little is fetched with each step.
struct RowsBelow {
  const std::byte* from[integer_rows];
  Index bytes_of_step;

  MOE_INLINE void fetch(Index step) const {
    // always_inline: g++ takes a function that does nothing but fetch for one that does nothing
    unroll<integer_rows>([&](auto r)
                             __attribute__((always_inline)) { __builtin_prefetch(from[r] + step * bytes_of_step); });
  }
};

/// acc[r][c] += the products of a piece, as far as its steps go.
template <int C, Index group, bool has_minima>
MOE_KERNEL void add_integer_products(const IntegerPiece& piece, Index steps, const ActivationCodes* const* x,
                                     Lanes<float>* acc, const RowsBelow& below) {
  constexpr int R = integer_rows, chunks = int(ActivationCodes::size / register_bytes);
  Lanes<float> sum[R][C];
  unroll<R>([&](auto r) { unroll<C>([&](auto c) { sum[r][c] = acc[r * integer_columns + c]; }); });
  const ActivationCodes* column[C];
  unroll<C>([&](auto c) { column[c] = x[c]; });
  for (Index step = 0; step < steps; ++step) {
    below.fetch(step);
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
                             Lanes<float>* acc, const RowsBelow& below) {
  constexpr int most = integer_tile_columns;
  const Index tiles = (columns + most - 1) / most;
  for (Index tile = 0; tile < tiles; ++tile) {
    const Index first = columns * tile / tiles, some = columns * (tile + 1) / tiles - first;
    unroll<most>([&](auto before) {
      constexpr int C = before + 1;
      if (some == C) add_integer_products<C, group, has_minima>(piece, steps, x + first, acc + first, below);
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
          rows.fetch(row + R + r, first, count / 2);  // the rest is fetched step by step
          take_integers(rows, row + r, first, count, room.piece.codes[r], room.piece.scales[r], room.piece.minima[r]);
        }
        RowsBelow below;
        for (Index r = 0; r < R; ++r) {
          below.from[r] = rows.codes_at(std::min(row + R + r, rows.count - 1), first + count / 2);
        }
        below.bytes_of_step = Index(double(count / 2) * rows.even->format().bits / 8) / steps;
        add_integer_products_of<group, has_minima>(room.piece, steps, from, columns, room.acc[0], below);
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

/// Some rows as integers, as a tile reads them.
struct IntegerPanel {
  alignas(64) std::int8_t codes[integer_panel][panel_numbers];
  alignas(64) float scales[integer_panel][panel_numbers / 16];
  alignas(64) float minima[integer_panel][panel_numbers / 16];
};

/// tile[R][V registers] (+)= rows · so many blocks of columns, each `stride` behind the other.
template <int R, int V, Index group, bool has_minima>
MOE_KERNEL void integer_tile(const std::int8_t* codes, const float* scales, const float* minima, Index steps,
                             const ManyActivationCodes* x, Index stride, bool add, float* tile, Index tile_stride) {
  constexpr int L = lanes<float>, units = int(group / 4);
  constexpr bool starts = has_starts && !has_minima;
  constexpr Index row_of_scales = panel_numbers / 16;
  using Ints = IntegersOf<register_bytes>;
  Lanes<float> sum[R][V] = {};
  if (add) {
    unroll<R>(
        [&](auto r) { unroll<V>([&](auto v) { sum[r][v] = load_as<Lanes<float>>(tile + v * tile_stride + r * L); }); });
  }
  for (Index step = 0; step < steps; ++step, codes += ActivationCodes::size) {
    for (int g = 0; g < int(ActivationCodes::size / group); ++g) {
      constexpr int first = group == 16 ? 0 : 4;  // of the sums
      const ManyActivationCodes* const its = x + step;
      Ints products[R][V] = {};
      if constexpr (starts) {
        unroll<V>([&](auto v) {
          const auto start = load_as<Ints>(its[v * stride].starts[first + g]);
          unroll<R>([&](auto r) { products[r][v] = start; });
        });
      }
      unroll<units>([&](auto u) __attribute__((always_inline)) {
        ByteRegister column[V];
        unroll<V>([&](auto v) { column[v] = load_as<ByteRegister>(its[v * stride].codes[g * units + u]); });
        unroll<R>([&](auto r) __attribute__((always_inline)) {
          const Ints four = load_as<std::int32_t>(codes + r * panel_numbers + g * group + 4 * u) - Ints{};
          unroll<V>([&](auto v) __attribute__((always_inline)) {
            products[r][v] = added_byte_products<has_minima>(products[r][v], (ByteRegister)four, column[v]);
          });
        });
      });
      unroll<V>([&](auto v) __attribute__((always_inline)) {
        const auto scale = load_as<Lanes<float>>(its[v * stride].scales[g * group / 32]);
        unroll<R>([&](auto r) __attribute__((always_inline)) {
          sum[r][v] = multiply_add(__builtin_convertvector(products[r][v], Lanes<float>),
                                   scales[r * row_of_scales + g] * scale, sum[r][v]);
        });
        if constexpr (has_minima) {
          const auto total = load_as<Lanes<float>>(its[v * stride].sums[first + g]);
          unroll<R>([&](auto r) __attribute__((always_inline)) {
            sum[r][v] = multiply_add(minima[r * row_of_scales + g] - Lanes<float>{}, total, sum[r][v]);
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

/// out[r + c · stride] = tile[r][c] of so many rows and columns, turned around.
MOE_INLINE void put_turned(const float* tile, Index rows, Index columns, float* out, Index stride) {
  constexpr int L = lanes<float>, R = integer_panel;
  unroll<(R + L - 1) / L>([&](auto q) __attribute__((always_inline)) {
    constexpr int first = q * L, height = std::min(L, R - first);
    Lanes<float> square[L] = {};
    unroll<height>([&](auto r) { square[r] = load_as<Lanes<float>>(tile + (first + r) * L); });
    transpose<float>(square);
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
        for (Index block = 0, wide = 1; block < num_blocks; block += wide) {
          const ManyActivationCodes* const its = x.block(left / L + block) + first / ActivationCodes::size;
          const auto tile = [&]<int some, int registers>() {
            for (int r = 0; r < R; r += some) {
              integer_tile<some, registers, group, has_minima>(panel.codes[r], panel.scales[r], panel.minima[r], steps,
                                                               its, x.steps(), first > 0, room.tiles[block] + r * L,
                                                               R * L);
            }
          };
          wide = std::min<Index>(V, num_blocks - block);
          if (wide == V) {
            tile.template operator()<R / V, V>();
          } else {
            tile.template operator()<R, 1>();
          }
        }
      }
      for (Index block = 0; block < num_blocks; ++block) {
        put_turned(room.tiles[block], height, std::min<Index>(L, columns - block * L),
                   out + row + (left + block * L) * stride, stride);
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
  const Index sums = round_up(depth, ActivationCodes::size) / 16 * detail::integer_columns;
  const std::size_t few = sizeof(detail::IntegerRoom) + std::size_t(sums) * sizeof(float);
  return Index(std::max(few, sizeof(detail::PanelRoom)) / register_bytes) + 1;
}

/// out[r + c · stride] = row r of weights · column c of x.
inline void integer_products(const Rows<Quantized>& rows, const Columns<Fast<Quantized>>& x, Lanes<float>* room,
                             float* out, Index stride) {
  eigen_assert(rows.odd == nullptr);
  detail::with_form(*rows.even->integers(), [&]<Index group, bool has_minima>() {
    auto& its = *reinterpret_cast<detail::IntegerRoom*>(room);
    detail::integer_dot_products<group, has_minima>(rows, x, its, out, stride);
  });
}

/// The same of columns in blocks.
inline void integer_products(const Rows<Quantized>& rows, const Blocks<Fast<Quantized>>& x, Lanes<float>* room,
                             float* out, Index stride) {
  eigen_assert(rows.odd == nullptr);
  detail::with_form(*rows.even->integers(), [&]<Index group, bool has_minima>() {
    auto& its = *reinterpret_cast<detail::PanelRoom*>(room);
    detail::integer_panel_products<group, has_minima>(rows, x, its, out, stride);
  });
}

}  // namespace moe::inline MOE_TARGET::kernels
