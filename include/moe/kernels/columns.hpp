/// @file  The columns that a product reads: token by token where they lie, or packed side by side.
#pragma once

#include <algorithm>

#include "moe/kernels/lanes.hpp"
#include "moe/kernels/transpose.hpp"
#include "moe/scratch.hpp"
#include "moe/types.hpp"

namespace moe::kernels {

/// From this many columns on, copying them once into packed form pays: benchmarks/bench_layer.cpp.
inline constexpr Index packing_pays = 32;

/// `count` columns of `depth` numbers each. In place: column c is contiguous at in_place[c]. Packed: blocks of columns,
/// each [depth][width], so that a row of a block is one or two registers; what is missing in the last block is 0.
template <class S>
struct Columns {
  Index depth;
  Index count;
  const S* const* in_place;
  const S* packed;  // null when read in place
};

/// Columns of a full packed block.
template <class S>
inline constexpr Index full_block = 2 * lanes<S>;

/// Width of the packed block that starts where `columns_left` are left: two registers, or one where that is enough.
template <class S>
constexpr Index block_width(Index columns_left) {
  return columns_left > lanes<S> ? full_block<S> : lanes<S>;
}

/// `size` rounded up to whole registers.
template <class S>
constexpr Index padded(Index size) {
  return (size + lanes<S> - 1) / lanes<S> * lanes<S>;
}

/// Copies the block of columns that starts at `first` to `block` [depth][width].
template <class S>
MOE_KERNEL void pack_block(const Columns<S>& from, Index first, S* block) {
  constexpr int L = lanes<S>;
  const Index width = block_width<S>(from.count - first);
  for (Index c = 0; c < width; c += L) {
    const S* const* column = from.in_place + first + c;
    const Index filled = std::clamp<Index>(from.count - first - c, 0, L);
    Index k = 0;
    for (; k + L <= from.depth; k += L) {
      Lanes<S> square[L] = {};
      for (Index i = 0; i < filled; ++i) square[i] = load_as<Lanes<S>>(column[i] + k);
      transpose<S>(square);
      for (Index i = 0; i < L; ++i) store(block + (k + i) * width + c, square[i]);
    }
    for (; k < from.depth; ++k) {
      for (Index i = 0; i < L; ++i) block[k * width + c + i] = i < filled ? column[i][k] : S(0);
    }
  }
}

/// The columns of x, in place.
template <class S>
Columns<S> columns_of(const ConstMatrixRef<S>& x, Scratch& scratch) {
  auto** column = scratch.array<const S*>(x.cols());
  for (Index c = 0; c < x.cols(); ++c) column[c] = x.data() + c * x.outerStride();
  return {x.rows(), x.cols(), column, nullptr};
}

/// task(0), task(1), … task(n − 1).
inline constexpr auto run_in_order = [](Index n, const auto& task) {
  for (Index i = 0; i < n; ++i) task(i);
};

/// The same columns, packed where that pays. Memory comes from `scratch`; for_each(n, task) runs task(i).
template <class S, class ForEach>
Columns<S> packed_where_it_pays(Columns<S> columns, Scratch& scratch, const ForEach& for_each) {
  if (columns.count < packing_pays) return columns;
  S* packed = scratch.array<S>(columns.depth * padded<S>(columns.count));
  for_each((columns.count + full_block<S> - 1) / full_block<S>, [&](Index block) {
    const Index first = block * full_block<S>;
    pack_block(columns, first, packed + first * columns.depth);
  });
  columns.packed = packed;
  return columns;
}

}  // namespace moe::kernels
