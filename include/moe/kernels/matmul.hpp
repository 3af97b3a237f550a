/// @file  y = W·x, for weights of any type.
#pragma once

#include "moe/core/numerics.hpp"
#include "moe/core/quantized.hpp"
#include "moe/core/scratch.hpp"
#include "moe/core/types.hpp"
#include "moe/kernels/activations.hpp"
#include "moe/kernels/products.hpp"
#include "moe/kernels/rows.hpp"

namespace moe::inline MOE_TARGET::kernels {

/// Rows [first, last) of y = W·x.  (rows × cols) · (cols × n_tokens)
/// @param y  where its columns begin, `stride` numbers apart
template <Arithmetic A>
void matmul_rows(const StoredWeight<typename A::Weight>& w, Index first, Index last, const Activations<A>& x,
                 typename A::Scalar* y, Index stride, Scratch& scratch) {
  products<A>(rows_of(w, first, last), x, make_room<A>(x.depth(), scratch), y + first, stride);
}

/// y = W·x, exactly, on the calling thread.
template <class W, class S>
void matmul(const StoredWeight<W>& w, const Eigen::Ref<const Matrix<S>>& x, MatrixRef<S> y, Scratch& scratch,
            const Numerics& numerics = {}) {
  using A = Exact<W>;
  for_each_form_in_turn<A>(x.cols(), numerics, scratch, [&](Index first, Index count, bool in_blocks) {
    const auto its = activations_of<A>(columns_of<S>(x, first, count), in_blocks, scratch, run_in_order);
    matmul_rows<A>(w, 0, w.rows(), its, y.data() + first * y.outerStride(), y.outerStride(), scratch);
  });
}

/// y = W·x by an arithmetic A, rows split over the workers, which are a Workers: who they are is not known down here.
template <Arithmetic A, class Workers>
void matmul_by(const StoredWeight<typename A::Weight>& w, const ConstMatrixRef<typename A::Scalar>& x,
               MatrixRef<typename A::Scalar> y, Workers& workers) {
  const auto share = [&](Index n, const auto& task) { workers.for_each(n, [&](Index i, Scratch&) { task(i); }); };
  const auto multiply = [&](Index begin, Index count, bool in_blocks) {
    const auto its =
        activations_of<A>(columns_of<typename A::Scalar>(x, begin, count), in_blocks, workers.shared(), share);
    workers.for_each_band(w.rows(), lanes<typename A::Scalar>, [&](Index first, Index last, Scratch& scratch) {
      matmul_rows<A>(w, first, last, its, y.data() + begin * y.outerStride(), y.outerStride(), scratch);
    });
  };
  for_each_form_in_turn<A>(x.cols(), workers.numerics(), workers.shared(), multiply);
}

/// The same, exactly.
template <class W, class S, class Workers>
  requires requires(Workers& workers) { workers.numerics(); }
void matmul(const StoredWeight<W>& w, const Eigen::Ref<const Matrix<S>>& x, MatrixRef<S> y, Workers& workers) {
  matmul_by<Exact<W>>(w, x, y, workers);
}

}  // namespace moe::inline MOE_TARGET::kernels
