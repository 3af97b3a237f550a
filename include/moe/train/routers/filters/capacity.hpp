/// @file  Gradients of a router whose experts have limited room.
#pragma once

#include <span>
#include <type_traits>
#include <vector>

#include "moe/core/routing.hpp"
#include "moe/core/tokens.hpp"
#include "moe/core/types.hpp"
#include "moe/kernels/multiply_add.hpp"
#include "moe/routers/filters/capacity.hpp"
#include "moe/runtime/workers.hpp"

namespace moe::inline MOE_TARGET {

/// Routes that were dropped have no gradient; the others have the router's, through w = v / max(Σ v, floor) of the kept
/// ones if they are renormalised.
template <class R, class Gradient, class Scalar = typename R::Scalar>
void backward(const WithCapacity<R>& limited, const Tokens<Scalar>& tokens, const Routing<Scalar>& routing,
              std::span<const std::type_identity_t<Scalar>> d_weight, MatrixRef<Scalar> d_logits, MatrixRef<Scalar> d_x,
              Gradient& gradient, Workers& workers) {
  if (!limited.options().renormalize) {
    return backward(limited.router(), tokens, routing, d_weight, d_logits, d_x, gradient.router(), workers);
  }
  Routing<Scalar> before;  // with the weights as they were
  limited.router().route(tokens, before, workers);
  std::vector<Scalar> sum(std::size_t(tokens.count())), along(sum.size()), d_before(d_weight.size());
  const auto for_each_kept = [&](const auto& f) {
    for (Index r = 0; r < routing.size(); ++r) {
      if (!routing.is_dropped(r)) f(std::size_t(r), std::size_t(routing.token[std::size_t(r)]));
    }
  };
  for_each_kept([&](std::size_t r, std::size_t t) {
    sum[t] += before.weight[r];
    along[t] = kernels::multiply_add(d_weight[r], routing.weight[r], along[t]);
  });
  const auto floor = Scalar(limited.options().floor);
  for_each_kept([&](std::size_t r, std::size_t t) {
    const bool at_floor = sum[t] < floor;
    const Scalar divisor = at_floor ? floor : sum[t];
    d_before[r] = divisor == 0 ? d_weight[r] : (d_weight[r] - (at_floor ? Scalar(0) : along[t])) / divisor;
  });
  backward(limited.router(), tokens, before, std::span<const Scalar>(d_before), d_logits, d_x, gradient.router(),
           workers);
}

}  // namespace moe::inline MOE_TARGET
