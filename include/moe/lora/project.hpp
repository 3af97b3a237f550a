/// @file  What an adapter's A makes of the tokens that it reads.
#pragma once

#include <algorithm>

#include "moe/core/scratch.hpp"
#include "moe/core/types.hpp"
#include "moe/kernels/activations.hpp"
#include "moe/kernels/columns.hpp"
#include "moe/kernels/multiply_add.hpp"
#include "moe/kernels/products.hpp"
#include "moe/lora/adapter.hpp"
#include "moe/lora/dropout.hpp"
#include "moe/runtime/workers.hpp"

namespace moe::inline MOE_TARGET {

/// Tokens wherever they lie, as an adapter reads them.
template <class Scalar>
struct TokensRead {
  const Scalar* const* x;          // the numbers of each
  const Index* token;              // the number of each, by which dropout knows it
  const Scalar* factor = nullptr;  // that each is multiplied by, or null

  /// Those from this one on.
  TokensRead from(Index first) const { return {x + first, token + first, factor ? factor + first : nullptr}; }
};

/// The columns of x.
template <class Scalar>
TokensRead<Scalar> columns_read(const ConstMatrixRef<Scalar>& x, Scratch& scratch) {
  auto** const numbers = scratch.array<const Scalar*>(x.cols());
  auto* const token = scratch.array<Index>(x.cols());
  for (Index t = 0; t < x.cols(); ++t) {
    numbers[t] = x.data() + t * x.outerStride();
    token[t] = t;
  }
  return {numbers, token};
}

/// U = scale · A · x for `count` tokens: U(k, c) = u[k · row_step + c · column_step].
/// A token's numbers do not depend, by a single bit, on the tokens beside it.
template <class Scalar>
void project(const Adapter<Scalar>& adapter, const Dropout& dropout, const TokensRead<Scalar>& tokens, Index count,
             Scalar* u, Index row_step, Index column_step, Scratch& scratch) {
  using A = kernels::Exact<Scalar>;
  constexpr Index at_once = 32;
  const Index depth = adapter.a.cols();
  const Scalar scale = adapter.scale();
  scratch.reserve(
      kernels::activation_bytes<A>(depth, at_once) + std::size_t(depth + adapter.rank() * at_once) * sizeof(Scalar) +
      std::size_t(kernels::room_registers<A>(depth)) * sizeof(typename A::Register) + 4 * Scratch::alignment);
  auto columns = kernels::make_columns<A>(depth, at_once, scratch);
  auto masked = scratch.matrix<Scalar>(depth, 1);
  auto products = scratch.matrix<Scalar>(adapter.rank(), at_once);
  auto* const room = kernels::make_room<A>(depth, scratch);

  for (Index first = 0; first < count; first += at_once) {
    columns.count = std::min(at_once, count - first);
    for (Index c = 0; c < columns.count; ++c) {
      const auto [x, token, factor] = tokens.from(first + c);
      if (!dropout.is_off()) dropout.copy(*token, 0, Eigen::Map<const Matrix<Scalar>>(*x, depth, 1), masked);
      kernels::put_column<A>(dropout.is_off() ? *x : masked.data(), factor ? *factor : Scalar(1), columns, c);
    }
    kernels::products<A>(kernels::rows_of(map_of(adapter.a), 0, adapter.rank()), columns, room, products.data(),
                         adapter.rank());
    for (Index c = 0; c < columns.count; ++c) {
      for (Index r = 0; r < adapter.rank(); ++r) {
        u[r * row_step + (first + c) * column_step] = scale * products(r, c);
      }
    }
  }
}

/// y += B·U, of all columns of x, rows and columns of y in one order on any number of threads.
template <class Scalar>
void add_adapted(const Adapter<Scalar>& adapter, const Dropout& dropout, const ConstMatrixRef<Scalar>& x,
                 MatrixRef<Scalar> y, Workers& workers) {
  const Index rank = adapter.rank(), n = x.cols();
  if (rank == 0) return;
  const auto read = columns_read<Scalar>(x, workers.shared());
  auto u = workers.shared().template matrix<Scalar>(rank, n);
  workers.for_each_band(n, 16, [&](Index first, Index last, Scratch& scratch) {
    project(adapter, dropout, read.from(first), last - first, u.col(first).data(), 1, rank, scratch);
    for (Index t = first; t < last; ++t) {
      for (Index r = 0; r < y.rows(); ++r) {
        for (Index k = 0; k < rank; ++k) y(r, t) = kernels::multiply_add(u(k, t), adapter.b(r, k), y(r, t));
      }
    }
  });
}

}  // namespace moe::inline MOE_TARGET
