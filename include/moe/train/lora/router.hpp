/// @file  Gradients of the adapter of a router.
#pragma once

#include "moe/core/check.hpp"
#include "moe/core/tokens.hpp"
#include "moe/core/types.hpp"
#include "moe/lora/router.hpp"
#include "moe/runtime/workers.hpp"
#include "moe/train/lora/adapter.hpp"
#include "moe/train/no_gradient.hpp"
#include "moe/train/routers/linear_logits.hpp"
#include "moe/train/routers/logits_router.hpp"

namespace moe::inline MOE_TARGET {

/// As backward() of LinearLogits. The linear layer beside the adapter has no gradient.
/// @param tokens    with the same seed as in forward, if there is one
/// @param gradient  of the same shape; only its adapter is added to; or NoGradient
/// @throws std::invalid_argument naming both ranks if those of the adapter and of its gradient differ.
template <class Scalar, class Gradient>
void backward(const LoraLogits<Scalar>& lora, const Tokens<Scalar>& tokens, const ConstMatrixRef<Scalar>&,
              const ConstMatrixRef<Scalar>& d_logits, MatrixRef<Scalar> d_x, Gradient& gradient, Workers& workers) {
  if constexpr (learns<Gradient>) {
    require_equal(gradient.adapter().rank(), lora.adapter().rank(), "backward: the rank of an adapter in the gradient");
  }
  const Index n = tokens.count();
  linear_backward_to_input<Scalar>(map_of(lora.base().weight()), d_logits, d_x, workers);

  const Adapter<Scalar>& adapter = lora.adapter();
  if (adapter.rank() == 0) return;
  const Dropout dropout = lora.dropout_for(workers);
  const auto read = columns_read<Scalar>(tokens.x, workers.shared());
  auto u = workers.shared().template matrix<Scalar>(adapter.rank(), n);
  auto t = workers.shared().template matrix<Scalar>(adapter.rank(), n);
  workers.for_each_band(n, 16, [&](Index first, Index last, Scratch& scratch) {
    project(adapter, dropout, read.from(first), last - first, u.col(first).data(), 1, adapter.rank(), scratch);
    Scalar* const room = kernels::make_product_room<Scalar>(scratch);
    back_to_rank<Scalar>(adapter, d_logits.middleCols(first, last - first), t.middleCols(first, last - first), room);
  });
  workers.for_each_band(lora.d_model(), 2 * kernels::lanes<Scalar>, [&](Index first, Index last, Scratch& scratch) {
    Scalar* const room = kernels::make_product_room<Scalar>(scratch);
    add_back_to_tokens<Scalar>(adapter, dropout, read.token, first, t, d_x.middleRows(first, last - first), room,
                               scratch);
    if constexpr (learns<Gradient>) {
      add_gradient_of_a<Scalar>(dropout, read.token, first, t, tokens.x.middleRows(first, last - first),
                                gradient.adapter(), room, scratch);
      if (first == 0) add_gradient_of_b<Scalar>(0, d_logits, u, gradient.adapter(), room);
    }
  });
}

}  // namespace moe::inline MOE_TARGET
