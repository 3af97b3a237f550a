/// @file  Gradients of an adapter, a band of rows at a time.
///
/// Of y = W·x + B·u, u = scale·A·D·x, where D leaves out numbers:  t = scale·Bᵀ·∂L/∂y,
///   ∂L/∂B += ∂L/∂y·uᵀ    ∂L/∂A += t·(D·x)ᵀ    ∂L/∂x += D·Aᵀ·t
#pragma once

#include "moe/core/scratch.hpp"
#include "moe/core/types.hpp"
#include "moe/lora/adapter.hpp"
#include "moe/lora/dropout.hpp"
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

}  // namespace moe::inline MOE_TARGET
