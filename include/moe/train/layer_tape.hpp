/// @file  What every layer keeps of forward() for backward().
#pragma once

#include <vector>

#include "moe/core/check.hpp"
#include "moe/core/types.hpp"
#include "moe/runtime/padding.hpp"
#include "moe/runtime/workers.hpp"
#include "moe/runtime/workspace.hpp"
#include "moe/train/detail/calls.hpp"

namespace moe::inline MOE_TARGET {

/// What the tape of a layer begins with. Reuse it, and a warm step allocates nothing.
template <class Scalar>
struct LayerTape {
  Workspace<Scalar> ws;                // ws.routing tells who went where: losses read it
  std::vector<Scalar> d_logits;        // see logit_gradient()
  std::vector<Scalar> d_router_input;  // see router_input_gradient()

  Index d_model = 0, num_tokens = 0, num_logits = 0;  // of the last forward(), without padding; logits of a token
  bool is_spent = false;                              // by backward()

  LayerTape& root() { return *this; }            ///< The tape of the layer that has the router.
  Workspace<Scalar>& workspace() { return ws; }  ///< Where forward() left its routing, and found its side inputs.

  /// (num_experts × n_tokens) ∂L/∂logits by other ways than y: losses may add to it between forward(), which sets it to
  /// 0, and backward().
  Eigen::Map<Matrix<Scalar>> logit_gradient() { return columns(d_logits, num_logits); }

  /// (d_model × n_tokens) ∂L/∂ws.side.router_input, which backward() sets; empty where the router has read x.
  Eigen::Map<Matrix<Scalar>> router_input_gradient() {
    return columns(d_router_input, d_router_input.empty() ? 0 : d_model);
  }

  /// At the end of forward().
  void start(const ConstMatrixRef<Scalar>& x, Index logits_of_token) {
    d_model = x.rows(), num_tokens = x.cols(), num_logits = logits_of_token, is_spent = false;
    d_logits.assign(ws.routing.logits.size(), Scalar(0));
    d_router_input.clear();
  }

  /// At the beginning of backward().
  /// @throws std::invalid_argument if a shape is not that of forward(), which may have been that of another layer, d_x
  /// overlaps what is read, or forward() was not called since the last backward().
  void require_start(const ConstMatrixRef<Scalar>& x, const ConstMatrixRef<Scalar>& d_y, MatrixRef<Scalar> d_x,
                     Index its_d_model, Index num_experts) const {
    require_columns(x, d_x, its_d_model, "backward: d_x beside x");
    require_columns(d_y, d_x, its_d_model, "backward: d_x beside d_y");
    require_equal(x.cols(), num_tokens, "backward: x.cols(), against that of forward(),");
    require_equal(its_d_model, d_model, "backward: layer.d_model(), against that of forward(),");
    require_equal(num_experts, ws.plan.view().num_experts(),
                  "backward: layer.num_experts(), against that of forward(),");
    require(!is_spent, "backward: was called twice on this tape, expected a forward() between");
  }

  /// (rows × n) of n · rows numbers; of no rows, no columns.
  static Eigen::Map<Matrix<Scalar>> columns(std::vector<Scalar>& numbers, Index rows) {
    return {numbers.data(), rows, rows == 0 ? 0 : Index(numbers.size()) / rows};
  }
};

/// What the tape of a layer around another one begins with.
template <class Its>
struct TapeAround {
  Its layer;

  /// That of the layer within: LayerTape.
  /// @{
  auto& root() { return layer.root(); }
  auto& workspace() { return layer.workspace(); }
  auto logit_gradient() { return layer.logit_gradient(); }
  auto router_input_gradient() { return root().router_input_gradient(); }
  /// @}
};

/// forward() of the real tokens; y of padding is 0.
template <class Layer, class Tape, class Scalar = typename Layer::Scalar>
void learn_real_tokens(const Layer& layer, const ConstMatrixRef<Scalar>& x, MatrixRef<Scalar> y, Tape& tape,
                       ExecutorRef executor) {
  require_columns(x, y, layer.d_model(), "forward");
  LayerTape<Scalar>& root = tape.root();
  RealTokens<Scalar> real(root.ws, x.cols(), "forward");
  auto its_y = real.columns(y.rows());
  detail::call_forward(layer, real.of(x), its_y, tape, executor);
  y.setZero();
  real.write(its_y, y);
  real.give_back(root.ws.routing, root.num_logits);
  real.give_back(root.d_logits, root.num_logits);
}

/// backward() of the real tokens; nothing is added to d_x of padding.
template <class Layer, class Tape, class GradientLayer, class Scalar = typename Layer::Scalar>
void backward_real_tokens(const Layer& layer, const ConstMatrixRef<Scalar>& x, const ConstMatrixRef<Scalar>& d_y,
                          Tape& tape, MatrixRef<Scalar> d_x, GradientLayer& gradient, ExecutorRef executor) {
  require_columns(x, d_x, layer.d_model(), "backward: d_x beside x");
  require_columns(d_y, d_x, layer.d_model(), "backward: d_x beside d_y");
  LayerTape<Scalar>& root = tape.root();
  const bool reads_x = root.ws.side.router_input.empty();
  RealTokens<Scalar> real(root.ws, x.cols(), "backward");
  const Index routes = root.ws.routing.size();
  real.take(root.ws.routing);
  real.take(root.d_logits);
  require_equal(root.ws.routing.size(), routes, "backward: routes of tokens that are not masked, against forward(),");
  auto its_d_x = real.of(d_x);
  detail::call_backward(layer, real.of(x), real.of(d_y), tape, its_d_x, gradient, executor);
  real.write(its_d_x, d_x);
  real.give_back(root.ws.routing, root.num_logits);
  real.give_back(root.d_logits, root.num_logits);
  real.give_back(root.d_router_input, reads_x ? 0 : x.rows());
}

}  // namespace moe::inline MOE_TARGET
