/// @file  The layer: route → dispatch → experts → combine. Read forward() first; everything else serves it.
#pragma once

#include <concepts>
#include <utility>
#include <vector>

#include "moe/core/check.hpp"
#include "moe/core/concepts.hpp"
#include "moe/core/contracts.hpp"
#include "moe/core/dispatch.hpp"
#include "moe/core/tokens.hpp"
#include "moe/core/types.hpp"
#include "moe/experts/expert_list.hpp"
#include "moe/runtime/executors/serial.hpp"
#include "moe/runtime/padding.hpp"
#include "moe/runtime/workers.hpp"
#include "moe/runtime/workspace.hpp"

namespace moe::inline MOE_TARGET {

/// A sparse mixture of experts. Holds parameters only: forward() is const and safe to call from many threads,
/// each with its own Workspace.
template <class R, class G>
class MoeLayer : public ShortForwards<MoeLayer<R, G>> {
  static_assert(is_router<R>() && is_group_of_experts<G>() && are_of_one_scalar<R, G>());

 public:
  using Scalar = typename G::Scalar;

  /// @throws std::invalid_argument if the number of experts or d_model differs from the router's.
  MoeLayer(R router, G experts) : router_(std::move(router)), experts_(std::move(experts)) { require_fit(); }

  /// @throws std::invalid_argument unless router and experts fit each other, as they must also where one was replaced.
  void require_fit() const {
    require_equal(experts_.num_experts(), router_.num_experts(), "MoeLayer: experts.num_experts()");
    require_equal(experts_.d_model(), router_.d_model(), "MoeLayer: experts.d_model()");
  }

  Index d_model() const { return router_.d_model(); }
  Index num_experts() const { return router_.num_experts(); }
  const R& router() const { return router_; }
  const G& experts() const { return experts_; }
  R& router() { return router_; }
  G& experts() { return experts_; }

  /// y = Σ over the experts that the router chose of weight · expert(x), for each column (token) of x. The router reads
  /// ws.side.router_input, if it is there, or else x.
  /// @param x  (d_model × n_tokens)
  /// @param y  (d_model × n_tokens), must not overlap x
  /// @throws std::invalid_argument if a shape is wrong, or y overlaps x or what the router reads.
  void forward(const ConstMatrixRef<Scalar>& x, MatrixRef<Scalar> y, Workspace<Scalar>& ws,
               ExecutorRef executor = Serial{}) const {
    if (is_padded(ws)) return forward_real_tokens(*this, x, y, ws, executor);
    require_fit();
    require_columns(x, y, d_model(), "MoeLayer");
    const auto tokens = tokens_of_router(x, ws.side, y, "MoeLayer");
    Workers workers = workers_of(ws, executor);
    ws.routing.clear();
    y.setZero();

    router_.route(tokens, ws.routing, workers);                                     // who goes where, and for how much
    const auto plan = plan_dispatch(ws.routing, x.cols(), num_experts(), ws.plan);  // the same, grouped by expert
    experts_.apply(x, plan, y, workers);  // y.col(t) += weight · expert(x.col(t))
  }
  using ShortForwards<MoeLayer>::forward;

  /// The router's as "gate.…", as checkpoints call it, and the experts' as "experts.…".
  template <class Visit>
  void visit_parameters(Visit& visit) {
    visit.in("gate", router_);
    visit.in("experts", experts_);
  }

 private:
  R router_;
  G experts_;
};

template <class R, class E>
MoeLayer(R, std::vector<E>) -> MoeLayer<R, ExpertList<E>>;  ///< A std::vector of experts is an ExpertList.

}  // namespace moe::inline MOE_TARGET
