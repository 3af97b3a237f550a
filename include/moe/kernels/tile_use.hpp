/// @file  What is done with a tile of dot products.
#pragma once

#include <type_traits>

#include "moe/core/types.hpp"
#include "moe/kernels/lanes.hpp"
#include "moe/kernels/multiply_add.hpp"

namespace moe::inline MOE_TARGET::kernels {

/// Dot products of some rows of weights and some neighbouring columns.
template <class S>
struct Tile {
  Index first_row, rows_apart, num_rows;
  Index first_column, num_columns;
  S* numbers;    // a row of the tile behind the other
  Index stride;  // from one row to the next: num_columns, or more where columns are in blocks

  Index row(Index r) const { return first_row + r * rows_apart; }
  Index column(Index c) const { return first_column + c; }

  /// Row row(r) of the weights · column(c).
  S& operator()(Index r, Index c) const { return numbers[r * stride + c]; }
};

/// f(row, column, numbers, size) for runs of a tile: `size` neighbouring rows of one column whose numbers lie side by
/// side.
template <class S, class F>
MOE_INLINE void for_each_run(const Tile<S>& tile, const F& f) {
  if (tile.rows_apart == 1 && tile.stride == 1) {
    f(tile.first_row, tile.first_column, tile.numbers, tile.num_rows);
    return;
  }
  for (Index c = 0; c < tile.num_columns; ++c) {
    for (Index r = 0; r < tile.num_rows; ++r) f(tile.row(r), tile.column(c), &tile(r, c), Index(1));
  }
}

/// to[i] = run[i].
template <class S>
MOE_INLINE void copy_run(const S* run, Index size, S* to) {
  constexpr Index L = lanes<S>;
  Index i = 0;
  for (; i + L <= size; i += L) store(to + i, load_as<Lanes<S>>(run + i));
  for (; i < size; ++i) to[i] = run[i];
}

/// to[i] += weight · run[i].
template <class S>
MOE_INLINE void add_run(S weight, const S* run, Index size, S* to) {
  constexpr Index L = lanes<S>;
  const Lanes<S> weights = weight - Lanes<S>{};
  Index i = 0;
  for (; i + L <= size; i += L) {
    store(to + i, multiply_add(weights, load_as<Lanes<S>>(run + i), load_as<Lanes<S>>(to + i)));
  }
  for (; i < size; ++i) to[i] = multiply_add(weight, run[i], to[i]);
}

/// A reference to something callable as use(tile). It does not own it. One indirect call a tile, thousands of
/// multiplications long, so that tiles are compiled once for all their uses.
template <class S>
class TileUse {
 public:
  template <class F>
    requires(!std::is_same_v<F, TileUse>)
  TileUse(const F& callable)
      : callable_(&callable), call_([](const void* f, const Tile<S>& tile) { (*static_cast<const F*>(f))(tile); }) {}

  void operator()(const Tile<S>& tile) const { call_(callable_, tile); }

 private:
  const void* callable_;
  void (*call_)(const void*, const Tile<S>&);
};

}  // namespace moe::inline MOE_TARGET::kernels
