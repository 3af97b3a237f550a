/// @file  What is done with a tile of dot products.
#pragma once

#include <type_traits>

#include "moe/types.hpp"

namespace moe::kernels {

/// A reference to something callable as use(row, rows, column, columns, tile, stride): see products(). It does not own
/// it. One indirect call a tile, thousands of multiplications long, so that tiles are compiled once for all their uses.
template <class S>
class TileUse {
 public:
  template <class F>
    requires(!std::is_same_v<F, TileUse>)
  TileUse(const F& callable)
      : callable_(&callable),
        call_([](const void* f, Index row, Index rows, Index column, Index columns, S* tile, Index stride) {
          (*static_cast<const F*>(f))(row, rows, column, columns, tile, stride);
        }) {}

  void operator()(Index row, Index rows, Index column, Index columns, S* tile, Index stride) const {
    call_(callable_, row, rows, column, columns, tile, stride);
  }

 private:
  const void* callable_;
  void (*call_)(const void*, Index, Index, Index, Index, S*, Index);
};

}  // namespace moe::kernels
