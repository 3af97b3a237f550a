/// @file  Gradients of the dense equivalents.
#pragma once

#include <utility>

#include "moe/core/check.hpp"
#include "moe/core/dispatch.hpp"
#include "moe/core/types.hpp"
#include "moe/layers/dense.hpp"
#include "moe/runtime/executors/serial.hpp"
#include "moe/runtime/workers.hpp"
#include "moe/runtime/workspace.hpp"
#include "moe/train/dispatch.hpp"
#include "moe/train/layer_tape.hpp"

namespace moe::inline MOE_TARGET {

/// What backward() needs of the forward() before.
template <class Scalar, class ExpertsTape>
struct DenseLayerTape : LayerTape<Scalar> {
  ExpertsTape expert;
};

template <class G>
auto tape_of(const DenseLayer<G>& layer) {
  return DenseLayerTape<typename G::Scalar, decltype(tape_of(layer.expert()))>{};
}

/// As forward() of a MoeLayer: train/layers/moe_layer.hpp.
template <class G, class Tape, class Scalar = typename G::Scalar>
void forward(const DenseLayer<G>& layer, const ConstMatrixRef<Scalar>& x, MatrixRef<Scalar> y, Tape& tape,
             ExecutorRef executor = Serial{}) {
  if (is_padded(tape.workspace())) return learn_real_tokens(layer, x, y, tape, executor);
  require_columns(x, y, layer.d_model(), "forward");
  Workers workers = workers_of(tape.ws, executor, Mode::learn);
  y.setZero();
  apply(layer.expert(), x, plan_all_to(0, x.cols(), 1, tape.ws.plan), y, tape.expert, workers);
  tape.start(x, 0);
}

/// As backward() of a MoeLayer.
template <class G, class Tape, class GradientLayer, class Scalar = typename G::Scalar>
void backward(const DenseLayer<G>& layer, const ConstMatrixRef<Scalar>& x, const ConstMatrixRef<Scalar>& d_y,
              Tape& tape, MatrixRef<Scalar> d_x, GradientLayer& gradient, ExecutorRef executor = Serial{}) {
  if (is_padded(tape.workspace())) return backward_real_tokens(layer, x, d_y, tape, d_x, gradient, executor);
  tape.require_start(x, d_y, d_x, layer.d_model(), 1);
  Workers workers = workers_of(tape.ws, executor, Mode::learn);
  const auto plan = tape.ws.plan.view();
  backward(layer.expert(), x, plan, d_y, std::as_const(tape.expert), unread_weights(plan, workers.shared()), d_x,
           gradient.expert(), workers);
  tape.is_spent = true;
}

}  // namespace moe::inline MOE_TARGET
