/// @file  Takes routes that were recorded instead of choosing any.
#pragma once

#include <utility>

#include "moe/core/check.hpp"
#include "moe/core/concepts.hpp"
#include "moe/core/contracts.hpp"
#include "moe/core/routing.hpp"
#include "moe/core/tokens.hpp"
#include "moe/core/types.hpp"
#include "moe/runtime/workers.hpp"

namespace moe::inline MOE_TARGET {

/// A router that replays SideInputs::recorded, just as it is, where there is one, and else routes as R does. So a layer
/// records (keep a copy of its workspace's routing) as well as it replays: to train on the very routes that inference
/// took, or to compare two machines.
template <class R>
class Replay {
  static_assert(is_router<R>());

 public:
  using Scalar = typename R::Scalar;

  explicit Replay(R router) : router_(std::move(router)) {}

  Index d_model() const { return router_.d_model(); }
  Index num_experts() const { return router_.num_experts(); }
  Index top_k() const
    requires requires(const R& r) { r.top_k(); }
  {
    return router_.top_k();
  }
  const R& router() const { return router_; }
  R& router() { return router_; }

  /// @throws std::invalid_argument if a recorded route leads nowhere or lacks a part, or if `recorded` is `routing`.
  void route(const Tokens<Scalar>& tokens, Routing<Scalar>& routing, Workers& workers) const {
    const Routing<Scalar>* const recorded = tokens.side.recorded;
    if (!recorded) return router_.route(tokens, routing, workers);
    require(recorded != &routing, "Replay: side.recorded is the routing that is being written");
    require_routes(*recorded, tokens.count(), num_experts());
    routing = *recorded;
  }

  template <class Visit>
  void visit_parameters(Visit& visit) {
    visit.in("", router_);
  }

 private:
  R router_;
};

}  // namespace moe::inline MOE_TARGET
