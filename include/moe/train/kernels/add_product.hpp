/// @file  C += A·B, where the numbers of C lie side by side along a row: what gradients are made of.
///
/// A gradient of weights sums over tokens, one of activations over rows of weights. Both are this product, whose B (the
/// tokens, or the weights) is read along its rows, where it lies.
#pragma once

#include <algorithm>
#include <cstring>
#include <type_traits>

#include "moe/core/quantized.hpp"
#include "moe/core/scratch.hpp"
#include "moe/core/types.hpp"
#include "moe/kernels/columns.hpp"
#include "moe/kernels/lanes.hpp"
#include "moe/kernels/multiply_add.hpp"
#include "moe/kernels/transpose.hpp"
#include "moe/kernels/widen.hpp"

namespace moe::inline MOE_TARGET::kernels {

/// A(i, k) = data[i · row_step + k · depth_step].
template <class S>
struct Strided {
  const S* data;
  Index row_step, depth_step;

  Strided from(Index row, Index depth) const {
    return {data + row * row_step + depth * depth_step, row_step, depth_step};
  }
};

namespace detail {

/// Rows of a tile of two registers: with them they fill 3/4 of all.
inline constexpr int product_rows = num_registers == 32 ? 12 : 6;

/// Depth that is summed before C is touched.
inline constexpr Index product_depth = 256;

/// Rows of A that are packed at once.
inline constexpr Index product_rows_in_block = 12 * product_rows;

/// Columns of B that are packed at once: they take half of L2, and are read in long pieces of rows.
template <class S>
Index product_columns() {
  constexpr Index width = 2 * lanes<S>;
  return std::max<Index>(1, Eigen::l2CacheSize() / 2 / (product_depth * Index(sizeof(S))) / width) * width;
}

/// C[R][2 registers] += A · B, for packed a [depth][R] and b [depth][2 registers]; `cols` columns of C are there.
template <int R, class S>
MOE_KERNEL void product_tile(const S* a, const S* b, Index depth, S* c, Index c_stride, Index cols) {
  using Register = Lanes<S>;
  constexpr int L = lanes<S>;
  Register sum[R][2] = {};
  for (Index k = 0; k < depth; ++k) {
    const auto left = load_as<Register>(b + k * 2 * L), right = load_as<Register>(b + k * 2 * L + L);
    unroll<R>([&](auto r) __attribute__((always_inline)) {
      const Register weight = a[k * R + r] - Register{};  // the same number in each lane
      sum[r][0] = multiply_add(weight, left, sum[r][0]);
      sum[r][1] = multiply_add(weight, right, sum[r][1]);
    });
  }
  if (cols == 2 * L) {
    unroll<R>([&](auto r) __attribute__((always_inline)) {
      S* const to = c + r * c_stride;
      store(to, load_as<Register>(to) + sum[r][0]);
      store(to + L, load_as<Register>(to + L) + sum[r][1]);
    });
  } else {
    for (Index r = 0; r < R; ++r) {
      for (Index j = 0; j < cols; ++j) c[r * c_stride + j] += sum[r][j / L][j % L];
    }
  }
}

/// Rows of B that are fetched while one is packed.
inline constexpr Index rows_fetched = 4;

/// Asks for a tile of C, which is to be added to.
template <class S>
MOE_INLINE void fetch_tile(const S* c, Index rows, Index c_stride) {
  for (Index r = 0; r < rows; ++r) {
    for (Index j = 0; j < 2 * lanes<S>; j += 64 / Index(sizeof(S))) __builtin_prefetch(c + r * c_stride + j, 1, 2);
  }
}

/// The tile of so many rows, 1 ≤ rows ≤ product_rows.
template <class S>
auto product_tile_of(Index rows) {
  void (*tile)(const S*, const S*, Index, S*, Index, Index) = nullptr;
  unroll<product_rows>([&](auto r) {
    if (rows == r + 1) tile = product_tile<r + 1, S>;
  });
  return tile;
}

/// product_rows rows of A, whose numbers lie side by side along the depth, turned around by squares of registers.
template <class S>
MOE_INLINE void pack_turned(const Strided<S>& a, Index depth, S* to) {
  constexpr int L = lanes<S>, R = product_rows;
  Index k = 0;
  for (; k + L <= depth; k += L) {
    unroll<(R + L - 1) / L>([&](auto q) __attribute__((always_inline)) {
      constexpr int first = q * L, height = std::min(L, R - first);
      Lanes<S> square[L] = {};
      unroll<height>([&](auto r) { square[r] = load_as<Lanes<S>>(a.data + (first + r) * a.row_step + k); });
      transpose<S>(square);
      unroll<L>([&](auto i) { std::memcpy(to + (k + i) * R + first, &square[i], height * sizeof(S)); });
    });
  }
  for (; k < depth; ++k) {
    for (Index r = 0; r < R; ++r) to[k * R + r] = a.data[r * a.row_step + k];
  }
}

/// A as tiles of product_rows, [tile][depth][rows]; the last one may have fewer.
template <class S>
MOE_KERNEL void pack_rows(const Strided<S>& a, Index rows, Index depth, S* to) {
  for (Index row = 0; row < rows; row += product_rows, to += depth * product_rows) {
    const Strided<S> its = a.from(row, 0);
    const Index filled = std::min<Index>(product_rows, rows - row);
    if (filled == product_rows && a.row_step == 1) {
      for (Index k = 0; k < depth; ++k) std::copy_n(its.data + k * a.depth_step, product_rows, to + k * product_rows);
    } else if (filled == product_rows && a.depth_step == 1) {
      pack_turned(its, depth, to);
    } else {
      for (Index k = 0; k < depth; ++k) {
        for (Index r = 0; r < filled; ++r) to[k * filled + r] = its.data[r * a.row_step + k * a.depth_step];
      }
    }
  }
}

/// So many columns and rows of B, widened to S, as panels: [panel][depth][2 registers]; what is missing is 0.
/// @param row   row(k) is where those columns of row k are, to be read at once
/// @param next  next(k) is where those of a row behind are, to be fetched meanwhile; or null
template <class S, class Row, class Next>
MOE_KERNEL void pack_panels(const Row& row, const Next& next, Index depth, Index cols, S* to) {
  constexpr int L = lanes<S>;
  constexpr Index width = 2 * L;
  const Index whole = cols / width * width;
  for (Index k = 0; k < depth; ++k) {
    const auto* const from = row(k);
    const auto* const behind = next(k);
    S* panel = to + k * width;
    for (Index left = 0; left < whole; left += width, panel += depth * width) {
      if (behind != nullptr) {
        repeat<int(width * sizeof(*behind) / 64)>([&](auto line) __attribute__((always_inline)) {
          __builtin_prefetch(behind + left + line * (64 / Index(sizeof(*behind))));
        });
      }
      store(panel, widen(from + left));
      store(panel + L, widen(from + left + L));
    }
    if (whole == cols) continue;
    std::fill_n(panel, width, S(0));
    for (Index j = whole; j < cols; ++j) panel[j - whole] = static_cast<S>(from[j]);
  }
}

}  // namespace detail

/// What add_product() works in.
template <class S>
S* make_product_room(Scratch& scratch) {
  using namespace detail;
  return scratch.array<S>(product_depth * (product_rows_in_block + product_columns<S>()) + product_columns<S>());
}

/// C += A·B.  C (rows × b.cols()), row-major, its rows c_stride apart; A (rows × b.rows()).
/// Each number is summed in one order, whichever rows and columns of C are asked for together.
template <class W, class S>
void add_product(const Strided<S>& a, Index rows, const StoredWeight<W>& b, S* c, Index c_stride, S* room) {
  using namespace detail;
  constexpr Index width = 2 * lanes<S>;
  const Index group = product_columns<S>();
  S* const packed_a = room;
  S* const packed_b = room + product_depth * product_rows_in_block;
  [[maybe_unused]] S* const decoded = packed_b + product_depth * group;  // a piece of a row
  for (Index k = 0; k < b.rows(); k += product_depth) {
    const Index depth = std::min(product_depth, b.rows() - k);
    for (Index left = 0; left < b.cols(); left += group) {
      const Index cols = std::min(group, b.cols() - left);
      const auto piece = [&](Index r) {
        if constexpr (std::is_same_v<W, Quantized>) {
          b.decode(k + r, left, cols, decoded);
          return decoded;
        } else {
          return b.data() + (k + r) * b.outerStride() + left;
        }
      };
      const auto behind = [&](Index r) -> const W* {
        if constexpr (std::is_same_v<W, Quantized>) {
          return nullptr;
        } else {
          return r + rows_fetched < depth ? piece(r + rows_fetched) : nullptr;
        }
      };
      pack_panels(piece, behind, depth, cols, packed_b);
      for (Index top = 0; top < rows; top += product_rows_in_block) {
        const Index height = std::min(product_rows_in_block, rows - top);
        pack_rows(a.from(top, k), height, depth, packed_a);
        for (Index row = 0; row < height; row += product_rows) {
          const Index tall = std::min<Index>(product_rows, height - row);
          const auto tile = product_tile_of<S>(tall);
          S* const to = c + (top + row) * c_stride + left;
          for (Index col = 0; col < cols; col += width) {
            if (col + width < cols) fetch_tile(to + col + width, tall, c_stride);
            tile(packed_a + row * depth, packed_b + col * depth, depth, to + col, c_stride,
                 std::min(width, cols - col));
          }
        }
      }
    }
  }
}

/// sums += Wᵀ·d, back through y = W·x.  W (rows × cols), d (rows × n_tokens), sums (cols × n_tokens).
template <class W, class S>
void add_transposed(const StoredWeight<W>& w, const ConstMatrixRef<S>& d, MatrixRef<S> sums, S* room) {
  add_product<W, S>({d.data(), d.outerStride(), 1}, d.cols(), w, sums.data(), sums.outerStride(), room);
}

/// gradient += d·xᵀ, of W in y = W·x.  d (rows × n_tokens), x (cols × n_tokens), gradient (rows × cols).
template <class S>
void add_outer(const ConstMatrixRef<S>& d, const ConstMatrixRef<S>& x,
               Eigen::Ref<Weight<std::type_identity_t<S>>> gradient, S* room) {
  const WeightMap<S> tokens(x.data(), x.cols(), x.rows(), Eigen::OuterStride<>(x.outerStride()));
  add_product<S, S>({d.data(), 1, d.outerStride()}, d.rows(), tokens, gradient.data(), gradient.outerStride(), room);
}

/// sums += the columns of d, one after the other: so that the order of a sum does not depend on which rows are asked
/// for.
template <class D, class Sums>
void add_columns(const D& d, Sums&& sums) {
  for (Index c = 0; c < d.cols(); ++c) sums += d.col(c);
}

/// Columns [first, last) of w.
template <class W>
WeightMap<W> columns_of_weight(const WeightMap<W>& w, Index first, Index last) {
  return {w.data() + first, w.rows(), last - first, Eigen::OuterStride<>(w.outerStride())};
}
inline QuantizedMatrix columns_of_weight(const QuantizedMatrix& w, Index first, Index last) {
  return w.middle_cols(first, last - first);
}

}  // namespace moe::inline MOE_TARGET::kernels
