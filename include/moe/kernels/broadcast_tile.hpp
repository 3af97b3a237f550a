/// @file  Many tokens: one weight at a time against registers full of tokens.
#pragma once

#include <algorithm>
#include <cstring>
#include <type_traits>
#include <variant>

#include "moe/core/quantized.hpp"
#include "moe/core/types.hpp"
#include "moe/kernels/arithmetic.hpp"
#include "moe/kernels/blocks.hpp"
#include "moe/kernels/lanes.hpp"
#include "moe/kernels/rows.hpp"
#include "moe/kernels/tile_use.hpp"
#include "moe/kernels/tiles.hpp"

namespace moe::inline MOE_TARGET::kernels {

/// Whether rows of a panel are read where they lie, for they need not be widened.
template <class W>
inline constexpr bool are_read_in_place = sizeof(W) >= sizeof(float);
template <>
inline constexpr bool are_read_in_place<Quantized> = true;  // decoded before: products.hpp

/// Whether pairs are multiplied a tile at a time.
template <class A>
concept InTiles = requires { requires A::in_tiles; };

/// Rows of a panel: even, so that gate and up rows stay pairs, and that hidden rows come together that must; times two
/// registers of tokens they fill at most 3/4 of all. Rows that are read as they lie are often a multiple of 4 KB apart,
/// where they share one set of L1: with as many of them as it has ways, a line is gone before all of it was read.
template <class A>
inline constexpr int panel_rows =
    InTiles<A>            ? 32
    : num_registers == 32 ? (register_bytes == 64 && are_read_in_place<typename A::Weight> ? 8 : 12)
                          : (A::rows_together == 1 ? 6 : 4);

/// Panels that are worked on side by side where a panel is too deep for the cache.
inline constexpr Index panels_in_group = 8;

/// Columns that are worked on together: enough that reading the weights again for the next ones costs little.
inline constexpr Index columns_in_group = 128;

namespace detail {

/// tile[panel_rows<A>][V registers] (+)= panel · block, summed along the units in order. Meanwhile lines of what comes
/// next are fetched, one of each row at a time.
template <class A, int V, class W>
  requires(!InTiles<A>)
MOE_KERNEL void broadcast_tile(const typename A::Unit* const* panel, const typename A::Unit* block, Index units,
                               bool add, typename A::Scalar* tile, const W* const* next, Index num_next) {
  using S = typename A::Scalar;
  using Register = typename A::Register;
  constexpr Index L = A::L, line = 64 / Index(sizeof(W));  // weights, and as units:
  constexpr Index units_of_line = line * A::parts * L / A::weights_per_step;
  Lanes<S> acc[panel_rows<A>][V] = {};
  const auto for_each_sum = [&](const auto& f) __attribute__((always_inline)) {  // one by one: sums that are copied
    repeat<panel_rows<A>>([&](auto r) __attribute__((always_inline)) {           // as an array are kept in memory
      repeat<V>([&](auto v) __attribute__((always_inline)) { f(acc[r][v], tile + (r * V + v) * L); });
    });
  };
  if (add) for_each_sum([](auto& sum, const S* at) __attribute__((always_inline)) { sum = load_as<Lanes<S>>(at); });
  const typename A::Unit* row[panel_rows<A>];
  for (int r = 0; r < panel_rows<A>; ++r) row[r] = panel[r];
  for (Index begin = 0, fetched = 0; begin < units; begin += units_of_line, fetched += line) {
    for (Index r = 0; r < num_next; ++r) __builtin_prefetch(next[r] + fetched, 0, 2);
    const Index end = std::min(units, begin + units_of_line);
    const auto multiply = [&]<int n>(std::integral_constant<int, n>, Index k) __attribute__((always_inline)) {
      Register x[n][V];
      repeat<n>(
          [&](auto i) { repeat<V>([&](auto v) { x[i][v] = load_as<Register>(block + ((k + i) * V + v) * L); }); });
      repeat<panel_rows<A>>([&](auto r) __attribute__((always_inline)) {
        repeat<n>([&](auto i) __attribute__((always_inline)) {
          const Register weight = row[r][k + i] - Register{};  // the same unit in each lane
          repeat<V>([&](auto v) { A::multiply_add(acc[r][v], weight, x[i][v]); });
        });
      });
    };
    // Units, for each time that a row's address is found: there are not registers for twelve.
    constexpr int together = panel_rows<A> > 8 ? 4 / V : 1;
    Index k = begin;
    for (; k + together <= end; k += together) multiply(std::integral_constant<int, together>{}, k);
    for (; k < end; ++k) multiply(std::integral_constant<int, 1>{}, k);
  }
  for_each_sum([](const auto& sum, S* at) __attribute__((always_inline)) { store(at, sum); });
}

/// The same by tiles of 16 rows, every other one; fetching ahead does not pay.
template <InTiles A, int V, class W>
MOE_KERNEL void broadcast_tile(const typename A::Unit* const* panel, const typename A::Unit* block, Index units,
                               bool add, float* tile, const W* const*, Index) {
  static_assert(A::L == 16 && panel_rows<A> == 32);
  add_pair_tiles<V>(panel[0], panel[1], panel[2] - panel[0], block, units, add, tile);
}

/// Whether some units of a panel's rows are read where they lie, though units are pairs: whole ones of whole rows.
template <class A, class W>
bool are_pairs_in_place(const Rows<W>& rows, Index row, Index end, Index depth) {
  return InTiles<A> && std::is_same_v<W, bfloat16> && row + panel_rows<A> <= rows.count && 2 * end <= depth;
}

/// Where a panel's weights lie as units, from step `first` of its rows on: in place, or loaded into `room`.
template <class A>
MOE_KERNEL void find_panel(const Rows<typename A::Weight>& rows, Index row, Index first, Index units, Index depth,
                           typename A::Unit* room, Index stride, const typename A::Unit** panel) {
  using W = typename A::Weight;
  using Unit = typename A::Unit;
  const bool in_place = are_pairs_in_place<A>(rows, row, first * A::L + units, depth);
  for (int r = 0; r < panel_rows<A>; ++r) {
    const W* const from = rows[std::min(row + r, rows.count - 1)];  // what has no row is computed, and not used
    if constexpr (std::is_same_v<W, Unit>) {
      panel[r] = from + first * A::weights_per_step;
    } else if (in_place) {
      panel[r] = reinterpret_cast<const Unit*>(from + first * A::weights_per_step);
    } else {
      Unit* to = room + r * stride;
      panel[r] = to;
      const Index last = first + (units + A::parts * A::L - 1) / (A::parts * A::L),
                  whole = std::min(last, depth / A::step);
      const auto load_step = [&](const W* weights) {
        unroll<A::parts>([&](auto p) { store(to + p * A::L, A::template load<p>(weights)); });
        to += A::parts * A::L;
      };
      for (Index step = first; step < whole; ++step) load_step(from + step * A::weights_per_step);
      if (whole < last) {
        W tail[A::weights_per_step] = {};
        std::memcpy(static_cast<void*>(tail), from + whole * A::weights_per_step,
                    std::size_t(depth % A::step) * sizeof(W));
        load_step(tail);
      }
    }
  }
}

}  // namespace detail

/// Registers that products() of blocks works in.
template <class A>
Index broadcast_tile_room(Index depth) {
  return panel_rows<A> * (round_up(depth, A::step) / A::L + 1 + panels_in_group * columns_in_group / A::L);
}

/// Every dot product of a row of weights and a column of x: use(tile) for tiles that cover them;
/// the first row of a tile is even.
///
/// Half of L2 holds a slice of the blocks of a group of columns, [units of the slice][columns], while the panels of a
/// group of rows pass by; sums wait in `tiles` for the next slice.
template <class A>
  requires(!std::is_same_v<typename A::Weight, Quantized>)
void products(const Rows<typename A::Weight>& rows, const Blocks<A>& x, typename A::Register* room,
              const TileUse<typename A::Scalar>& use) {
  using W = typename A::Weight;
  using Unit = typename A::Unit;
  if (rows.count == 0 || x.count == 0) return;
  const Index units = A::num_units(x.depth), units_of_step = A::parts * A::L;
  const Index group = std::min(columns_in_group, round_up(x.count, A::L));
  const Index fitting = Index(Eigen::l2CacheSize()) / 2 / (group * Index(sizeof(Unit)));
  const Index slices = std::max<Index>(1, (units + fitting - 1) / std::max<Index>(1, fitting));
  const Index slice = round_up(std::max<Index>(1, (units + slices - 1) / slices), units_of_step);
  const Index tall = panel_rows<A> * (slice < units ? panels_in_group : 1);

  const Index stride = round_up(slice, units_of_step) + A::L;  // never a multiple of 4 KB
  auto* const panel_room = reinterpret_cast<Unit*>(room);
  auto* const tiles = reinterpret_cast<typename A::Scalar*>(panel_room + panel_rows<A> * stride);

  [[maybe_unused]] const std::conditional_t<InTiles<A>, TilesInUse, std::monostate> in_use{};
  for (Index begin = 0; begin < x.count; begin += group) {
    const Index end = std::min(x.count, begin + group);
    for (Index top = 0; top < rows.count; top += tall) {
      const Index bottom = std::min(rows.count, top + tall);
      for (Index unit = 0; unit == 0 || unit < units; unit += slice) {
        const Index some_units = std::min(slice, units - unit);
        for (Index row = top; row < bottom; row += panel_rows<A>) {
          const Unit* panel[panel_rows<A>];
          detail::find_panel<A>(rows, row, unit / units_of_step, some_units, x.depth, panel_room, stride, panel);

          // What comes next: the panel below; then the first one again, in the next slice; then the next group's.
          const bool below = row + panel_rows<A> < bottom, again = unit + slice < units;
          const Index next_row = below ? row + panel_rows<A> : again ? top : bottom;
          const Index next_unit = below ? unit : again ? unit + slice : 0;
          const W* next[panel_rows<A>];
          Index num_next = std::clamp<Index>(rows.count - next_row, 0, panel_rows<A>);
          for (Index r = 0; r < num_next; ++r)
            next[r] = rows[next_row + r] + next_unit / units_of_step * A::weights_per_step;

          for (Index column = begin; column < end; column += full_block<A>) {
            const Index width = block_width<A>(x.count - column);
            const Unit* const block = x.block(column) + unit * width;
            auto* const tile = tiles + (row - top) * group + (column - begin) * panel_rows<A>;
            if (width == full_block<A>) {
              detail::broadcast_tile<A, 2, W>(panel, block, some_units, unit > 0, tile, next, num_next);
            } else {
              detail::broadcast_tile<A, 1, W>(panel, block, some_units, unit > 0, tile, next, num_next);
            }
            num_next = 0;
            if (unit + slice < units) continue;
            use({.first_row = row,
                 .num_rows = std::min<Index>(panel_rows<A>, rows.count - row),
                 .first_column = column,
                 .num_columns = std::min(width, x.count - column),
                 .numbers = tile,
                 .stride = width});
          }
        }
      }
    }
  }
}

}  // namespace moe::inline MOE_TARGET::kernels
