/// @file  A router whose routes go through a filter.
#pragma once

#include <utility>

#include "moe/core/concepts.hpp"
#include "moe/core/contracts.hpp"
#include "moe/core/routing.hpp"
#include "moe/core/tokens.hpp"
#include "moe/core/types.hpp"
#include "moe/runtime/workers.hpp"

namespace moe::inline MOE_TARGET {

/// What all filters are around a router. A filter is a struct with one of
///   apply(tokens, num_experts, routing, workers)   changes the routes that the router wrote to num_experts
///   route(router, tokens, routing, workers)        writes routes itself
/// and, if it has another number of experts than the router, num_experts. So that the router learns through it, it says
/// `static constexpr bool only_drops = true`, or has a filter_backward() beside it: train/routers/filters/.
template <class R, class Filter>
class FilteredRouter {
  static_assert(is_router<R>());

 public:
  using Scalar = typename R::Scalar;

  /// @param filter  as above
  FilteredRouter(R router, Filter filter) : router_(std::move(router)), filter_(std::move(filter)) {}

  Index d_model() const { return router_.d_model(); }
  Index num_experts() const {
    if constexpr (requires(const Filter& f) { f.num_experts; }) return filter_.num_experts;
    return router_.num_experts();
  }
  Index top_k() const
    requires requires(const R& r) { r.top_k(); } && (!requires(const Filter& f) { f.num_experts; })
  {
    return router_.top_k();
  }
  const R& router() const { return router_; }
  R& router() { return router_; }
  const Filter& filter() const { return filter_; }
  /// The filter's.
  const auto& options() const
    requires requires(const Filter& f) { f.options; }
  {
    return filter_.options;
  }

  /// @throws std::invalid_argument as router and filter do.
  void route(const Tokens<Scalar>& tokens, Routing<Scalar>& routing, Workers& workers) const {
    if constexpr (requires { filter_.route(router_, tokens, routing, workers); }) {
      filter_.route(router_, tokens, routing, workers);
    } else {
      router_.route(tokens, routing, workers);
      filter_.apply(tokens, router_.num_experts(), routing, workers);
    }
  }

  template <class Visit>
  void visit_parameters(Visit& visit) {
    visit.in("", router_);
  }

 private:
  R router_;
  Filter filter_;
};

}  // namespace moe::inline MOE_TARGET
