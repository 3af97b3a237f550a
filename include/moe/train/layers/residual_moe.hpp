/// @file  Gradients of a sparse layer blended with an expert that every token sees.
#pragma once

#include <cstddef>
#include <span>
#include <utility>
#include <vector>

#include "moe/core/check.hpp"
#include "moe/core/dispatch.hpp"
#include "moe/core/types.hpp"
#include "moe/kernels/vectors.hpp"
#include "moe/layers/expert_beside.hpp"
#include "moe/layers/residual_moe.hpp"
#include "moe/runtime/executors/serial.hpp"
#include "moe/runtime/workers.hpp"
#include "moe/runtime/workspace.hpp"
#include "moe/train/gradient_shape.hpp"
#include "moe/train/layer_tape.hpp"
#include "moe/train/routers/detail/scores.hpp"

namespace moe::inline MOE_TARGET {

/// What backward() needs of the forward() before.
template <class Scalar, class Its, class ExpertsTape>
struct ResidualMoeTape : TapeAround<Its> {
  ExpertsTape shared;
  PlanMemory<Scalar> shared_plan;
  std::vector<Scalar> answer, d_answer;  // (d_model × n_tokens) of the sparse layer
  std::vector<Scalar> d_weight;          // ∂L/∂c_1 of each token
};

template <class Layer, class G>
auto tape_of(const ResidualMoe<Layer, G>& layer) {
  return ResidualMoeTape<typename G::Scalar, decltype(tape_of(layer.layer())), decltype(tape_of(layer.shared()))>{};
}

/// As forward() of a MoeLayer: train/layers/moe_layer.hpp.
template <class Layer, class G, class Tape, class Scalar = typename G::Scalar>
void forward(const ResidualMoe<Layer, G>& layer, const ConstMatrixRef<Scalar>& x, MatrixRef<Scalar> y, Tape& tape,
             ExecutorRef executor = Serial{}) {
  if (is_padded(tape.workspace())) return learn_real_tokens(layer, x, y, tape, executor);
  detail::forward_beside<Scalar>(
      x, y, tape.workspace(), tape.shared_plan, executor, Mode::learn,
      [&] { forward(layer.layer(), x, y, tape.layer, executor); },
      [&](const auto& plan, MatrixRef<Scalar> to, Workers& workers) {
        apply(layer.shared(), x, plan, to, tape.shared, workers);
      },
      [&](MatrixRef<Scalar> answer, std::span<Scalar> weight, Workers& workers) {
        tape.answer.assign(answer.data(), answer.data() + answer.size());
        layer.weigh(x, answer, weight, workers);
      });
}

/// As backward() of a MoeLayer.
template <class Layer, class G, class Tape, class GradientLayer, class Scalar = typename G::Scalar>
void backward(const ResidualMoe<Layer, G>& layer, const ConstMatrixRef<Scalar>& x, const ConstMatrixRef<Scalar>& d_y,
              Tape& tape, MatrixRef<Scalar> d_x, GradientLayer& gradient, ExecutorRef executor = Serial{}) {
  if (is_padded(tape.workspace())) return backward_real_tokens(layer, x, d_y, tape, d_x, gradient, executor);
  require_columns(x, d_x, layer.d_model(), "backward: d_x beside x");
  require_columns(d_y, d_x, layer.d_model(), "backward: d_x beside d_y");
  require_equal(x.cols(), std::ssize(tape.shared_plan.token), "backward: x.cols(), against that of forward(),");
  require_gradient(gradient.weight(), layer.weight(), "weight");
  require_gradient(gradient.bias(), layer.bias(), "bias");
  require_tape(tape.answer, x.size());
  const Eigen::Map<const Matrix<Scalar>> answer(tape.answer.data(), x.rows(), x.cols());
  tape.d_answer.resize(tape.answer.size());
  tape.d_weight.assign(std::size_t(x.cols()), Scalar(0));
  Eigen::Map<Matrix<Scalar>> d_answer(tape.d_answer.data(), x.rows(), x.cols());
  {
    Workers workers = workers_of(tape.workspace(), executor, Mode::learn);
    backward(layer.shared(), x, tape.shared_plan.view(), d_y, std::as_const(tape.shared), std::span(tape.d_weight), d_x,
             gradient.shared(), workers);
  }
  for (Index t = 0; t < x.cols(); ++t) {
    const auto c = layer.coefficients(x.col(t));
    d_answer.col(t) = c(0) * d_y.col(t);
    Eigen::Matrix<Scalar, 2, 1> d(kernels::dot(answer.col(t), d_y.col(t)), tape.d_weight[std::size_t(t)]);
    softmax_backward(c, d);
    for (Index i = 0; i < 2; ++i) {
      kernels::add_scaled(d(i), layer.weight().row(i), d_x.col(t));
      kernels::add_scaled(d(i), x.col(t), gradient.weight().row(i));
    }
    if (layer.bias().size() > 0) gradient.bias() += d;
  }
  backward(layer.layer(), x, d_answer, tape.layer, d_x, gradient.layer(), executor);
}

}  // namespace moe::inline MOE_TARGET
