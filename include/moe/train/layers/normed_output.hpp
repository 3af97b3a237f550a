/// @file  Gradients of a layer whose output is normalised.
#pragma once

#include <cstddef>
#include <iterator>
#include <vector>

#include "moe/core/check.hpp"
#include "moe/core/types.hpp"
#include "moe/layers/normed_output.hpp"
#include "moe/runtime/executors/serial.hpp"
#include "moe/runtime/workers.hpp"
#include "moe/runtime/workspace.hpp"
#include "moe/train/kernels/rms_norm.hpp"
#include "moe/train/layer_tape.hpp"

namespace moe::inline MOE_TARGET {

/// What backward() needs of the forward() before.
template <class Scalar, class Its>
struct NormedOutputTape : TapeAround<Its> {
  std::vector<Scalar> answer, d_answer;  // (d_model × n_tokens) of the layer
  bool is_spent = false;                 // by backward()
};

template <class L>
auto tape_of(const NormedOutput<L>& layer) {
  return NormedOutputTape<typename L::Scalar, decltype(tape_of(layer.layer()))>{};
}

/// As forward() of a MoeLayer: train/layers/moe_layer.hpp.
template <class L, class Tape, class Scalar = typename L::Scalar>
void forward(const NormedOutput<L>& layer, const ConstMatrixRef<Scalar>& x, MatrixRef<Scalar> y, Tape& tape,
             ExecutorRef executor = Serial{}) {
  if (is_padded(tape.workspace())) return learn_real_tokens(layer, x, y, tape, executor);
  forward(layer.layer(), x, y, tape.layer, executor);
  tape.answer.resize(std::size_t(y.size()));
  Eigen::Map<Matrix<Scalar>> answer(tape.answer.data(), y.rows(), y.cols());
  answer = y;
  Workers workers = workers_of(tape.workspace(), executor, Mode::learn);
  layer.norm().apply(answer, y, workers);
  tape.is_spent = false;
}

/// As backward() of a MoeLayer.
template <class L, class Tape, class GradientLayer, class Scalar = typename L::Scalar>
void backward(const NormedOutput<L>& layer, const ConstMatrixRef<Scalar>& x, const ConstMatrixRef<Scalar>& d_y,
              Tape& tape, MatrixRef<Scalar> d_x, GradientLayer& gradient, ExecutorRef executor = Serial{}) {
  if (is_padded(tape.workspace())) return backward_real_tokens(layer, x, d_y, tape, d_x, gradient, executor);
  require_columns(d_y, d_x, layer.d_model(), "backward: d_x beside d_y");
  require_equal(d_y.size(), std::ssize(tape.answer), "backward: d_y.size(), against that of forward(),");
  require(!tape.is_spent, "backward: was called twice on this tape, expected a forward() between");
  tape.d_answer.assign(tape.answer.size(), Scalar(0));
  Eigen::Map<Matrix<Scalar>> d_answer(tape.d_answer.data(), d_y.rows(), d_y.cols());
  const Eigen::Map<const Matrix<Scalar>> answer(tape.answer.data(), d_y.rows(), d_y.cols());
  {
    Workers workers = workers_of(tape.workspace(), executor, Mode::learn);
    backward(layer.norm(), answer, d_y, d_answer, gradient.norm().gain(), workers);
  }
  backward(layer.layer(), x, d_answer, tape.layer, d_x, gradient.layer(), executor);
  tape.is_spent = true;
}

}  // namespace moe::inline MOE_TARGET
