/// @file  The dense equivalents of a sparse layer.
#pragma once

#include <utility>
#include <vector>

#include "moe/core/check.hpp"
#include "moe/core/concepts.hpp"
#include "moe/core/contracts.hpp"
#include "moe/core/dispatch.hpp"
#include "moe/core/types.hpp"
#include "moe/experts/gated_ffn_bank.hpp"
#include "moe/layers/moe_layer.hpp"
#include "moe/runtime/executors/serial.hpp"
#include "moe/runtime/workers.hpp"
#include "moe/runtime/workspace.hpp"

namespace moe::inline MOE_TARGET {

/// A layer without a router: every token goes through the one expert of a group.
template <class G>
class DenseLayer {
  static_assert(is_group_of_experts<G>());

 public:
  using Scalar = typename G::Scalar;

  /// @throws std::invalid_argument unless the group holds exactly one expert.
  explicit DenseLayer(G expert) : expert_(std::move(expert)) {
    require_equal(expert_.num_experts(), 1, "DenseLayer: expert.num_experts()");
  }

  Index d_model() const { return expert_.d_model(); }
  const G& expert() const { return expert_; }
  G& expert() { return expert_; }

  /// y = expert(x).  x and y (d_model × n_tokens), not overlapping.
  /// @throws std::invalid_argument if a shape is wrong or y overlaps x.
  void forward(const ConstMatrixRef<Scalar>& x, MatrixRef<Scalar> y, Workspace<Scalar>& ws,
               ExecutorRef executor = Serial{}) const {
    require_columns(x, y, d_model(), "DenseLayer");
    Workers workers(executor, ws.scratch, ws.numerics);
    y.setZero();
    expert_.apply(x, plan_all_to(0, x.cols(), 1, ws.plan), y, workers);
  }

  /// The same with a y of its own.
  Matrix<Scalar> forward(const ConstMatrixRef<Scalar>& x, Workspace<Scalar>& ws,
                         ExecutorRef executor = Serial{}) const {
    return forward_alone(*this, x, ws, executor);
  }

  /// The same with memory of its own.
  Matrix<Scalar> forward(const ConstMatrixRef<Scalar>& x, ExecutorRef executor = Serial{}) const {
    return forward_alone(*this, x, executor);
  }

  template <class Visit>
  void visit_parameters(Visit& visit) {
    visit.in_only("", expert_);
  }

 private:
  G expert_;
};

/// The first `count` experts of a bank side by side as one dense FFN of width count · d_ff; it computes their sum.
/// @throws std::invalid_argument unless 1 ≤ count ≤ num_experts.
template <class W, class Act>
DenseLayer<GatedFfnBank<W, Act>> concatenate(const GatedFfnBank<W, Act>& bank, Index count) {
  require_between(1, count, bank.num_experts(), "concatenate: count");
  const Index d = bank.d_model(), ff = bank.d_ff();
  WeightStack<W> gate(1, count * ff, d), up(1, count * ff, d), down(1, d, count * ff);
  for (Index e = 0; e < count; ++e) {
    gate.owned(0).middleRows(e * ff, ff) = bank.w_gate()[e];
    up.owned(0).middleRows(e * ff, ff) = bank.w_up()[e];
    down.owned(0).middleCols(e * ff, ff) = bank.w_down()[e];
  }
  using Scalar = ActivationScalar<W>;
  const auto beside = [&](const Matrix<Scalar>& bias) -> Matrix<Scalar> {
    return bias.size() > 0 ? Matrix<Scalar>(bias.leftCols(count).reshaped()) : Matrix<Scalar>();
  };
  const auto& [b_gate, b_up, b_down] = bank.biases();
  GatedFfnBiases<Scalar> biases{beside(b_gate), beside(b_up), {}};
  if (b_down.size() > 0) biases.down = b_down.leftCols(count).rowwise().sum();
  return DenseLayer(
      GatedFfnBank<W, Act>(std::move(gate), std::move(up), std::move(down), bank.activation(), std::move(biases)));
}

/// The dense FFN that costs a token as much as the sparse layer does: width top_k · d_ff.
template <class R, class W, class Act>
auto dense_of_equal_active_size(const MoeLayer<R, GatedFfnBank<W, Act>>& layer) {
  return concatenate(layer.experts(), layer.router().top_k());
}

/// The dense FFN that has as many parameters as the sparse layer: width num_experts · d_ff.
template <class R, class W, class Act>
auto dense_of_equal_total_size(const MoeLayer<R, GatedFfnBank<W, Act>>& layer) {
  return concatenate(layer.experts(), layer.num_experts());
}

/// The definition itself, slow and obvious: every expert sees every token, and routes pick from all those answers.
/// Tests compare every layer with it.
template <Router R, Experts G>
Matrix<typename G::Scalar> oracle_forward(const MoeLayer<R, G>& layer, const ConstMatrixRef<typename G::Scalar>& x,
                                          const SideInputs<typename G::Scalar>& side = {}) {
  using Scalar = typename G::Scalar;
  std::vector<Scratch> scratch;
  const Serial serial;

  Routing<Scalar> routing;
  Workers router_workers(serial, scratch);
  layer.router().route(Tokens(x, side), routing, router_workers);

  const auto answers_to = [&](const Matrix<Scalar>& tokens) {
    std::vector<Matrix<Scalar>> answer(std::size_t(layer.num_experts()), Matrix<Scalar>::Zero(x.rows(), x.cols()));
    for (Index e = 0; e < layer.num_experts(); ++e) {
      PlanMemory<Scalar> memory;
      const auto everyone = plan_all_to(e, x.cols(), layer.num_experts(), memory);
      Workers workers(serial, scratch);
      layer.experts().apply(tokens, everyone, answer[std::size_t(e)], workers);
    }
    return answer;
  };

  Matrix<Scalar> y = Matrix<Scalar>::Zero(x.rows(), x.cols());
  if (routing.weight_on == WeightOn::output) {
    const auto answer = answers_to(x);
    for (std::size_t r = 0; r < routing.token.size(); ++r) {
      if (routing.is_dropped(Index(r))) continue;
      const Index t = routing.token[r];
      y.col(t) += routing.weight[r] * answer[std::size_t(routing.expert[r])].col(t);
    }
  } else {
    for (std::size_t r = 0; r < routing.token.size(); ++r) {
      if (routing.is_dropped(Index(r))) continue;
      const Index t = routing.token[r];
      y.col(t) += answers_to(routing.weight[r] * x)[std::size_t(routing.expert[r])].col(t);
    }
  }
  return y;
}

}  // namespace moe::inline MOE_TARGET
