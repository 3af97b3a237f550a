/// @file  Gradients of a sparse layer with an expert that every token sees.
#pragma once

#include <span>
#include <utility>
#include <vector>

#include "moe/core/check.hpp"
#include "moe/core/dispatch.hpp"
#include "moe/core/types.hpp"
#include "moe/kernels/vectors.hpp"
#include "moe/layers/expert_beside.hpp"
#include "moe/layers/shared.hpp"
#include "moe/runtime/executors/serial.hpp"
#include "moe/runtime/workers.hpp"
#include "moe/runtime/workspace.hpp"
#include "moe/train/gradient_shape.hpp"
#include "moe/train/layer_tape.hpp"

namespace moe::inline MOE_TARGET {

/// What backward() needs of the forward() before.
template <class Scalar, class Its, class ExpertsTape>
struct WithSharedExpertTape : TapeAround<Its> {
  ExpertsTape shared;
  PlanMemory<Scalar> shared_plan;
  std::vector<Scalar> d_weight;  // ∂L/∂ what each token's shared answer is multiplied by
};

template <class Layer, class G>
auto tape_of(const WithSharedExpert<Layer, G>& layer) {
  return WithSharedExpertTape<typename G::Scalar, decltype(tape_of(layer.layer())),
                              decltype(tape_of(layer.shared()))>{};
}

/// As forward() of a MoeLayer: train/layers/moe_layer.hpp.
template <class Layer, class G, class Tape, class Scalar = typename G::Scalar>
void forward(const WithSharedExpert<Layer, G>& layer, const ConstMatrixRef<Scalar>& x, MatrixRef<Scalar> y, Tape& tape,
             ExecutorRef executor = Serial{}) {
  if (is_padded(tape.workspace())) return learn_real_tokens(layer, x, y, tape, executor);
  detail::forward_beside<Scalar>(
      x, y, tape.workspace(), tape.shared_plan, executor, Mode::learn,
      [&] { forward(layer.layer(), x, y, tape.layer, executor); },
      [&](const auto& plan, MatrixRef<Scalar> to, Workers& workers) {
        apply(layer.shared(), x, plan, to, tape.shared, workers);
      },
      [&](MatrixRef<Scalar>, std::span<Scalar> weight, Workers&) { layer.weigh_shared(x, weight); });
}

/// As backward() of a MoeLayer.
template <class Layer, class G, class Tape, class GradientLayer, class Scalar = typename G::Scalar>
void backward(const WithSharedExpert<Layer, G>& layer, const ConstMatrixRef<Scalar>& x,
              const ConstMatrixRef<Scalar>& d_y, Tape& tape, MatrixRef<Scalar> d_x, GradientLayer& gradient,
              ExecutorRef executor = Serial{}) {
  if (is_padded(tape.workspace())) return backward_real_tokens(layer, x, d_y, tape, d_x, gradient, executor);
  require_gradient(gradient.gate(), layer.gate(), "gate");
  backward(layer.layer(), x, d_y, tape.layer, d_x, gradient.layer(), executor);
  Workers workers = workers_of(tape.workspace(), executor, Mode::learn);
  tape.d_weight.assign(std::size_t(x.cols()), Scalar(0));
  backward(layer.shared(), x, tape.shared_plan.view(), d_y, std::as_const(tape.shared), std::span(tape.d_weight), d_x,
           gradient.shared(), workers);
  if (layer.gate().size() == 0) return;
  for (Index t = 0; t < x.cols(); ++t) {  // w = σ(gate · x)
    const Scalar w = tape.shared_plan.weight[std::size_t(t)], d = tape.d_weight[std::size_t(t)] * w * (Scalar(1) - w);
    kernels::add_scaled(d, x.col(t), gradient.gate());
    kernels::add_scaled(d, layer.gate(), d_x.col(t));
  }
}

}  // namespace moe::inline MOE_TARGET
