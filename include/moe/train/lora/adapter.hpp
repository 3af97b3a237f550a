/// @file  Gradients of an adapter, a band of rows at a time.
///
/// Of y = W·x + B·u, u = scale·A·D·x, where D leaves out numbers:  t = scale·Bᵀ·∂L/∂y,
///   ∂L/∂B += ∂L/∂y·uᵀ    ∂L/∂A += t·(D·x)ᵀ    ∂L/∂x += D·Aᵀ·t
#pragma once

#include "moe/core/check.hpp"
#include "moe/core/scratch.hpp"
#include "moe/core/types.hpp"
#include "moe/kernels/lanes.hpp"
#include "moe/lora/adapter.hpp"
#include "moe/lora/dropout.hpp"
#include "moe/lora/project.hpp"
#include "moe/runtime/workers.hpp"
#include "moe/train/gradient_shape.hpp"
#include "moe/train/kernels/add_product.hpp"

namespace moe::inline MOE_TARGET {

/// t = scale·Bᵀ·d.  d (out × n_tokens), t (rank × n_tokens).
template <class Scalar>
void back_to_rank(const Adapter<Scalar>& adapter, const ConstMatrixRef<Scalar>& d, MatrixRef<Scalar> t, Scalar* room) {
  t.setZero();
  kernels::add_transposed<Scalar, Scalar>(map_of(adapter.b), d, t, room);
  t *= adapter.scale();
}

/// d_x += D·Aᵀ·t, for rows [first, first + d_x.rows()) of x.
/// @param token  of each column
template <class Scalar>
void add_back_to_tokens(const Adapter<Scalar>& adapter, const Dropout& dropout, const Index* token, Index first,
                        const ConstMatrixRef<Scalar>& t, MatrixRef<Scalar> d_x, Scalar* room, Scratch& scratch) {
  const auto a = kernels::columns_of_weight(map_of(adapter.a), first, first + d_x.rows());
  if (dropout.is_off()) return kernels::add_transposed<Scalar, Scalar>(a, t, d_x, room);
  auto sums = scratch.matrix<Scalar>(d_x.rows(), d_x.cols());
  sums.setZero();
  kernels::add_transposed<Scalar, Scalar>(a, t, sums, room);
  for (Index c = 0; c < d_x.cols(); ++c) {
    dropout.copy(token[c], first, sums.col(c), sums.col(c));
    d_x.col(c) += sums.col(c);
  }
}

/// Columns [first, first + x.rows()) of ∂L/∂A.
/// @param x  these rows of what the adapter has read
template <class Scalar>
void add_gradient_of_a(const Dropout& dropout, const Index* token, Index first, const ConstMatrixRef<Scalar>& t,
                       const ConstMatrixRef<Scalar>& x, Adapter<Scalar>& gradient, Scalar* room, Scratch& scratch) {
  auto columns = gradient.a.middleCols(first, x.rows());
  if (dropout.is_off()) return kernels::add_outer<Scalar>(t, x, columns, room);
  auto read = scratch.matrix<Scalar>(x.rows(), x.cols());
  for (Index c = 0; c < x.cols(); ++c) dropout.copy(token[c], first, x.col(c), read.col(c));
  kernels::add_outer<Scalar>(t, read, columns, room);
}

/// Rows [first, first + d.rows()) of ∂L/∂B.
/// @param d  these rows of ∂L/∂y
template <class Scalar>
void add_gradient_of_b(Index first, const ConstMatrixRef<Scalar>& d, const ConstMatrixRef<Scalar>& u,
                       Adapter<Scalar>& gradient, Scalar* room) {
  kernels::add_outer<Scalar>(d, u, gradient.b.middleRows(first, d.rows()), room);
}

/// All of these for the columns of x, without what W itself passes on.
/// @param gradient  of the same shape, added to; null for one that does not learn
/// @throws std::invalid_argument naming both shapes if they differ.
template <class Scalar>
void backward(const Adapter<Scalar>& adapter, const Dropout& dropout, const ConstMatrixRef<Scalar>& x,
              const ConstMatrixRef<Scalar>& d_y, MatrixRef<Scalar> d_x, Adapter<Scalar>* gradient, Workers& workers) {
  const Index rank = adapter.rank(), n = x.cols();
  if (gradient) {
    require_gradient(gradient->a, adapter.a, "lora_A");
    require_gradient(gradient->b, adapter.b, "lora_B");
  }
  if (rank == 0) return;
  const auto read = columns_read<Scalar>(x, workers.shared());
  auto u = workers.shared().template matrix<Scalar>(rank, n);
  auto t = workers.shared().template matrix<Scalar>(rank, n);
  workers.for_each_band(n, 16, [&](Index first, Index last, Scratch& scratch) {
    project(adapter, dropout, read.from(first), last - first, u.col(first).data(), 1, rank, scratch);
    Scalar* const room = kernels::make_product_room<Scalar>(scratch);
    back_to_rank<Scalar>(adapter, d_y.middleCols(first, last - first), t.middleCols(first, last - first), room);
  });
  workers.for_each_band(x.rows(), 2 * kernels::lanes<Scalar>, [&](Index first, Index last, Scratch& scratch) {
    Scalar* const room = kernels::make_product_room<Scalar>(scratch);
    add_back_to_tokens<Scalar>(adapter, dropout, read.token, first, t, d_x.middleRows(first, last - first), room,
                               scratch);
    if (gradient == nullptr) return;
    add_gradient_of_a<Scalar>(dropout, read.token, first, t, x.middleRows(first, last - first), *gradient, room,
                              scratch);
    if (first == 0) add_gradient_of_b<Scalar>(0, d_y, u, *gradient, room);
  });
}

}  // namespace moe::inline MOE_TARGET
