/// @file  A layer without a router.
#pragma once

#include <utility>

#include "moe/core/check.hpp"
#include "moe/core/concepts.hpp"
#include "moe/core/contracts.hpp"
#include "moe/core/dispatch.hpp"
#include "moe/core/types.hpp"
#include "moe/runtime/executors/serial.hpp"
#include "moe/runtime/padding.hpp"
#include "moe/runtime/workers.hpp"
#include "moe/runtime/workspace.hpp"

namespace moe::inline MOE_TARGET {

/// A layer without a router: every token goes through the one expert of a group.
template <class G>
class DenseLayer : public ShortForwards<DenseLayer<G>> {
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
    if (is_padded(ws)) return forward_real_tokens(*this, x, y, ws, executor);
    require_columns(x, y, d_model(), "DenseLayer");
    Workers workers = workers_of(ws, executor);
    y.setZero();
    expert_.apply(x, plan_all_to(0, x.cols(), 1, ws.plan), y, workers);
  }
  using ShortForwards<DenseLayer>::forward;

  template <class Visit>
  void visit_parameters(Visit& visit) {
    visit.in_only("", expert_);
  }

 private:
  G expert_;
};

}  // namespace moe::inline MOE_TARGET
