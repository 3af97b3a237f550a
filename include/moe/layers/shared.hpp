/// @file  A sparse layer with an expert that every token sees.
#pragma once

#include <cmath>
#include <span>
#include <utility>
#include <vector>

#include "moe/core/check.hpp"
#include "moe/core/concepts.hpp"
#include "moe/core/contracts.hpp"
#include "moe/core/dispatch.hpp"
#include "moe/core/types.hpp"
#include "moe/kernels/vectors.hpp"
#include "moe/layers/expert_beside.hpp"
#include "moe/runtime/executors/serial.hpp"
#include "moe/runtime/padding.hpp"
#include "moe/runtime/workers.hpp"
#include "moe/runtime/workspace.hpp"

namespace moe::inline MOE_TARGET {

/// y = layer(x) + shared(x), or with a gate y = layer(x) + σ(gate · x) · shared(x).
/// DeepSeekMoE, Dai et al. 2024, §3.2, arXiv:2401.06066; the sigmoid gate is Qwen2-MoE's.
template <class Layer, class G>
class WithSharedExpert : public ShortForwards<WithSharedExpert<Layer, G>> {
  static_assert(is_group_of_experts<G>() && are_of_one_scalar<Layer, G>());

 public:
  using Scalar = typename G::Scalar;
  using RowVector = Eigen::Matrix<Scalar, 1, Eigen::Dynamic>;  ///< A number for each of x, as a row.

  /// @param shared  a group of one expert
  /// @param gate    (1 × d_model), or empty for none
  /// @throws std::invalid_argument if d_model differs, or `shared` does not hold exactly one expert.
  WithSharedExpert(Layer layer, G shared, RowVector gate = {})
      : layer_(std::move(layer)), shared_(std::move(shared)), gate_(std::move(gate)) {
    require_equal(shared_.num_experts(), 1, "WithSharedExpert: shared.num_experts()");
    require_equal(shared_.d_model(), layer_.d_model(), "WithSharedExpert: shared.d_model()");
    if (gate_.size() > 0) require_equal(gate_.size(), layer_.d_model(), "WithSharedExpert: gate.size()");
  }

  Index d_model() const { return layer_.d_model(); }
  const Layer& layer() const { return layer_; }
  const G& shared() const { return shared_; }
  const RowVector& gate() const { return gate_; }
  Layer& layer() { return layer_; }
  G& shared() { return shared_; }
  Eigen::Map<RowVector> gate() { return {gate_.data(), gate_.size()}; }

  /// x and y (d_model × n_tokens), not overlapping. `ws.routing` tells of the sparse layer.
  /// @throws std::invalid_argument if a shape is wrong or y overlaps x.
  void forward(const ConstMatrixRef<Scalar>& x, MatrixRef<Scalar> y, Workspace<Scalar>& ws,
               ExecutorRef executor = Serial{}) const {
    if (is_padded(ws)) return forward_real_tokens(*this, x, y, ws, executor);
    detail::forward_beside<Scalar>(
        x, y, ws, ws.shared_plan, executor, Mode::infer, [&] { layer_.forward(x, y, ws, executor); },
        [&](const auto& plan, MatrixRef<Scalar> to, Workers& workers) { shared_.apply(x, plan, to, workers); },
        [&](MatrixRef<Scalar>, std::span<Scalar> weight, Workers&) { weigh_shared(x, weight); });
  }
  using ShortForwards<WithSharedExpert>::forward;

  template <class Visit>
  void visit_parameters(Visit& visit) {
    visit.in("", layer_);
    visit.in_only("shared_expert", shared_);
    visit("shared_expert_gate.weight", gate_);
  }

  /// weight[t] = σ(gate · x.col(t)); without a gate it stays as it is.
  void weigh_shared(const ConstMatrixRef<Scalar>& x, std::span<Scalar> weight) const {
    if (gate_.size() == 0) return;
    require_equal(gate_.size(), x.rows(), "WithSharedExpert: gate.size()");
    for (Index t = 0; t < x.cols(); ++t) {
      weight[std::size_t(t)] = Scalar(1) / (Scalar(1) + std::exp(-kernels::dot(gate_, x.col(t))));
    }
  }

 private:
  Layer layer_;
  G shared_;
  RowVector gate_;
};

}  // namespace moe::inline MOE_TARGET
