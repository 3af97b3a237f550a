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

namespace moe::inline MOE_TARGET {

/// What backward() of a layer needs of the forward() before. Reuse it, and a warm step allocates nothing.
template <class Scalar, class ExpertsTape>
struct MoeLayerTape {
  Workspace<Scalar> ws;  // ws.routing tells who went where: losses read it

  // By other ways than y, to both of which losses may add between forward(), which sets them to 0, and backward():
  std::vector<Scalar> d_weight;  // ∂L/∂weight of each route
  std::vector<Scalar> d_logits;  // see logit_gradient()

  std::vector<Scalar> d_router_input;  // see router_input_gradient()

  Index num_tokens = 0, num_logits = 0;  // num_logits of each token
  bool is_spent = false;                 // by backward()
  ExpertsTape experts;

  Workspace<Scalar>& workspace() { return ws; }

  /// (num_experts × n_tokens) ∂L/∂logits.
  Eigen::Map<Matrix<Scalar>> logit_gradient() { return {d_logits.data(), num_logits, num_tokens}; }

  /// (d_model × n_tokens) ∂L/∂ws.side.router_input, which backward() sets; empty where the router has read x.
  Eigen::Map<Matrix<Scalar>> router_input_gradient() {
    const Index n = d_router_input.empty() ? 0 : num_tokens;
    return {d_router_input.data(), n > 0 ? std::ssize(d_router_input) / n : 0, n};
  }
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
  tape.d_logits.assign(ws.routing.logits.size(), Scalar(0));
  tape.is_spent = false;
  tape.num_tokens = x.cols();
  tape.num_logits = x.cols() > 0 ? Index(tape.d_logits.size()) / x.cols() : layer.num_experts();
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
  require_columns(x, d_x, layer.d_model(), "backward: d_x beside x");
  require_columns(d_y, d_x, layer.d_model(), "backward: d_x beside d_y");
  require_equal(x.cols(), tape.num_tokens, "backward: x.cols(), against that of forward(),");
  require(!tape.is_spent, "backward: was called twice on this tape, expected a forward() between");
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
