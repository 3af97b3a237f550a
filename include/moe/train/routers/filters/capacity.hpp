/// @file  Gradients of a router whose experts have limited room.
#pragma once

#include <span>
#include <type_traits>

#include "moe/core/routing.hpp"
#include "moe/core/tokens.hpp"
#include "moe/core/types.hpp"
#include "moe/kernels/multiply_add.hpp"
#include "moe/routers/filters/capacity.hpp"
#include "moe/runtime/workers.hpp"
#include "moe/train/routers/filters/filtered_router.hpp"

namespace moe::inline MOE_TARGET {

/// Routes that were dropped have no gradient; the others have the router's, through w = v / max(Σ v, floor) of the kept
/// ones if they are renormalised.
template <class R, class PassOn, class Scalar = typename R::Scalar>
void filter_backward(const CapacityFilter& filter, const R& router, const Tokens<Scalar>& tokens,
                     const Routing<Scalar>& routing, std::span<const std::type_identity_t<Scalar>> d_weight,
                     MatrixRef<Scalar> d_logits, Workers& workers, const PassOn& pass_on) {
  if (!filter.options.renormalize) return pass_on(routing, d_weight, d_logits);
  const Routing<Scalar>& before = route_anew(router, tokens, workers);  // with the weights as they were
  const auto zeros = [&](Index size) {
    auto made = workers.shared().template matrix<Scalar>(size, 1);
    made.setZero();
    return made;
  };
  auto sum = zeros(tokens.count()), along = zeros(tokens.count()), d_before = zeros(routing.size());
  const auto for_each_kept = [&](const auto& f) {
    for (Index r = 0; r < routing.size(); ++r) {
      if (!routing.is_dropped(r)) f(r, std::size_t(r), routing.token[std::size_t(r)]);
    }
  };
  for_each_kept([&](Index, std::size_t r, Index t) {
    sum(t) += before.weight[r];
    along(t) = kernels::multiply_add(d_weight[r], routing.weight[r], along(t));
  });
  const auto floor = Scalar(filter.options.floor);
  for_each_kept([&](Index route, std::size_t r, Index t) {
    const bool at_floor = sum(t) < floor;
    const Scalar divisor = at_floor ? floor : sum(t);
    d_before(route) = divisor == 0 ? d_weight[r] : (d_weight[r] - (at_floor ? Scalar(0) : along(t))) / divisor;
  });
  pass_on(before, {d_before.data(), std::size_t(d_before.size())}, d_logits);
}

}  // namespace moe::inline MOE_TARGET
