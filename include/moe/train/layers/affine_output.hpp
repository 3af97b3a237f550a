/// @file  Gradients of a layer whose output is scaled, then shifted.
#pragma once

#include <vector>

#include "moe/core/check.hpp"
#include "moe/core/types.hpp"
#include "moe/layers/affine_output.hpp"
#include "moe/runtime/executors/serial.hpp"
#include "moe/runtime/workers.hpp"
#include "moe/runtime/workspace.hpp"
#include "moe/train/gradient_shape.hpp"
#include "moe/train/kernels/add_product.hpp"
#include "moe/train/layer_tape.hpp"

namespace moe::inline MOE_TARGET {

/// What backward() needs of the forward() before.
template <class Scalar, class Its>
struct AffineOutputTape : TapeAround<Its> {
  std::vector<Scalar> d_answer;  // (d_model × n_tokens) scale · ∂L/∂y
};

template <class L>
auto tape_of(const AffineOutput<L>& layer) {
  return AffineOutputTape<typename L::Scalar, decltype(tape_of(layer.layer()))>{};
}

/// As forward() of a MoeLayer: train/layers/moe_layer.hpp.
template <class L, class Tape, class Scalar = typename L::Scalar>
void forward(const AffineOutput<L>& layer, const ConstMatrixRef<Scalar>& x, MatrixRef<Scalar> y, Tape& tape,
             ExecutorRef executor = Serial{}) {
  if (is_padded(tape.workspace())) return learn_real_tokens(layer, x, y, tape, executor);
  forward(layer.layer(), x, y, tape.layer, executor);
  layer.scale_and_shift(y);
}

/// As backward() of a MoeLayer.
template <class L, class Tape, class GradientLayer, class Scalar = typename L::Scalar>
void backward(const AffineOutput<L>& layer, const ConstMatrixRef<Scalar>& x, const ConstMatrixRef<Scalar>& d_y,
              Tape& tape, MatrixRef<Scalar> d_x, GradientLayer& gradient, ExecutorRef executor = Serial{}) {
  if (is_padded(tape.workspace())) return backward_real_tokens(layer, x, d_y, tape, d_x, gradient, executor);
  require_columns(d_y, d_x, layer.d_model(), "backward: d_x beside d_y");
  require_gradient(gradient.bias(), layer.bias(), "bias");
  tape.d_answer.resize(std::size_t(d_y.size()));
  Eigen::Map<Matrix<Scalar>> d_answer(tape.d_answer.data(), d_y.rows(), d_y.cols());
  d_answer = layer.scale() * d_y;
  backward(layer.layer(), x, d_answer, tape.layer, d_x, gradient.layer(), executor);
  if (layer.bias().size() > 0) kernels::add_columns(d_y, gradient.bias());
}

}  // namespace moe::inline MOE_TARGET
