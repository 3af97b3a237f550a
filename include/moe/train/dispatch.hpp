/// @file  Gradients of the slots of a plan back to the tokens that filled them.
#pragma once

#include <algorithm>
#include <cstddef>
#include <span>

#include "moe/core/dispatch.hpp"
#include "moe/core/scratch.hpp"
#include "moe/core/types.hpp"
#include "moe/runtime/workers.hpp"

namespace moe::inline MOE_TARGET {

/// d_x.col(token of s) += d_slots.col(s) for each slot s, in the order of the plan whatever the threads do.
/// @param d_slots  (d_model × num_slots)
/// @param d_x      (d_model × n_tokens)
template <class Slots, class Scalar = typename Slots::Scalar>
void add_slots_to_tokens(const Slots& d_slots, const DispatchPlan<Scalar>& plan, MatrixRef<Scalar> d_x,
                         Workers& workers) {
  workers.for_each_band(d_x.rows(), Scratch::alignment / sizeof(Scalar), [&](Index first, Index last, Scratch&) {
    for (Index s = 0; s < plan.num_slots(); ++s) {
      d_x.col(plan.token[std::size_t(s)]).segment(first, last - first) += d_slots.col(s).segment(first, last - first);
    }
  });
}

/// ∂L/∂weight of each route, where weights are constants: written by backward() of the experts, and read by nobody.
template <class Scalar>
std::span<Scalar> unread_weights(const DispatchPlan<Scalar>& plan, Scratch& scratch) {
  auto* const d_weight = scratch.array<Scalar>(plan.num_slots());
  std::fill_n(d_weight, plan.num_slots(), Scalar(0));
  return {d_weight, std::size_t(plan.num_slots())};
}

}  // namespace moe::inline MOE_TARGET
