/// @file  The layer backwards: combine → experts → dispatch → route.
#pragma once

#include <algorithm>
#include <cstddef>
#include <iterator>
#include <span>
#include <utility>
#include <vector>

#include "moe/core/check.hpp"
#include "moe/core/dispatch.hpp"
#include "moe/core/tokens.hpp"
#include "moe/core/types.hpp"
#include "moe/layers/moe_layer.hpp"
#include "moe/runtime/executors/serial.hpp"
#include "moe/runtime/workers.hpp"
#include "moe/runtime/workspace.hpp"
#include "moe/train/layer_tape.hpp"

namespace moe::inline MOE_TARGET {

/// What backward() needs of the forward() before.
template <class Scalar, class ExpertsTape>
struct MoeLayerTape : LayerTape<Scalar> {
  std::vector<Scalar> d_weight;  // ∂L/∂weight of each route by other ways than y: as logit_gradient()
  ExpertsTape experts;
};

template <class R, class G>
auto tape_of(const MoeLayer<R, G>& layer) {
  return MoeLayerTape<typename G::Scalar, decltype(tape_of(layer.experts()))>{};
}

/// layer.forward(x, y), and keeps in `tape` what backward() needs.
/// @throws std::invalid_argument as layer.forward().
template <class R, class G, class T, class Scalar = typename G::Scalar>
void forward(const MoeLayer<R, G>& layer, const ConstMatrixRef<Scalar>& x, MatrixRef<Scalar> y,
             MoeLayerTape<Scalar, T>& tape, ExecutorRef executor = Serial{}) {
  if (is_padded(tape.workspace())) return learn_real_tokens(layer, x, y, tape, executor);
  layer.require_fit();
  require_columns(x, y, layer.d_model(), "forward");
  Workspace<Scalar>& ws = tape.ws;
  const auto tokens = tokens_of_router(x, ws.side, y, "forward");
  Workers workers = workers_of(ws, executor, Mode::learn);
  ws.routing.clear();
  y.setZero();
  layer.router().route(tokens, ws.routing, workers);
  const auto plan = plan_dispatch(ws.routing, x.cols(), layer.num_experts(), ws.plan);
  apply(layer.experts(), x, plan, y, tape.experts, workers);
  tape.d_weight.assign(ws.routing.weight.size(), Scalar(0));
  tape.start(x, x.cols() > 0 ? Index(ws.routing.logits.size()) / x.cols() : layer.num_experts());
}

/// From ∂L/∂y back to all that y depends on, once for the last forward() on this tape, with the same x and side inputs.
/// What the router has read in place of x gets its own gradient: tape.router_input_gradient().
/// @param d_y       (d_model × n_tokens)
/// @param d_x       (d_model × n_tokens) ∂L/∂x; added to
/// @param gradient  a layer of the same shape, such as zeros_like(layer): ∂L/∂ each parameter; added to
/// @throws std::invalid_argument if a shape is wrong, d_x overlaps d_y, x or what the router reads, forward() had
/// another number of tokens, or
///         it was not called since the last backward().
template <class R, class G, class T, class GradientLayer, class Scalar = typename G::Scalar>
void backward(const MoeLayer<R, G>& layer, const ConstMatrixRef<Scalar>& x, const ConstMatrixRef<Scalar>& d_y,
              MoeLayerTape<Scalar, T>& tape, MatrixRef<Scalar> d_x, GradientLayer& gradient,
              ExecutorRef executor = Serial{}) {
  if (is_padded(tape.workspace())) return backward_real_tokens(layer, x, d_y, tape, d_x, gradient, executor);
  layer.require_fit();
  tape.require_start(x, d_y, d_x, layer.d_model(), layer.num_experts());
  require_equal(gradient.d_model(), layer.d_model(), "backward: gradient.d_model()");
  require_equal(gradient.num_experts(), layer.num_experts(), "backward: gradient.num_experts()");
  Workspace<Scalar>& ws = tape.ws;
  const auto tokens = tokens_of_router(x, ws.side, d_x, "backward");
  const bool reads_x = ws.side.router_input.empty();
  tape.d_router_input.assign(reads_x ? 0 : std::size_t(x.size()), Scalar(0));
  Workers workers = workers_of(ws, executor, Mode::learn);
  backward(layer.experts(), x, ws.plan.view(), d_y, std::as_const(tape.experts), std::span(tape.d_weight), d_x,
           gradient.experts(), workers);
  backward(layer.router(), tokens, ws.routing, std::span<const Scalar>(tape.d_weight), tape.logit_gradient(),
           reads_x ? d_x : MatrixRef<Scalar>(tape.router_input_gradient()), gradient.router(), workers);
  tape.is_spent = true;
}

}  // namespace moe::inline MOE_TARGET
