/// @file  What is done with a tile of dot products.
#pragma once

#include <type_traits>

#include "moe/core/types.hpp"

namespace moe::inline MOE_TARGET::kernels {

/// Dot products of neighbouring rows of weights and neighbouring columns in a block.
template <class S>
struct Tile {
  Index first_row, num_rows;
  Index first_column, num_columns;
  S* numbers;    // a row of the tile behind the other
  Index stride;  // from one row to the next: the width of the block

  Index row(Index r) const { return first_row + r; }
  Index column(Index c) const { return first_column + c; }

  /// Row row(r) of the weights · column(c).
  S& operator()(Index r, Index c) const { return numbers[r * stride + c]; }
};

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
