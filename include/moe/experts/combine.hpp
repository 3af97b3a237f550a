/// @file  Adds what experts answered to the tokens that asked.
#pragma once

#include "moe/core/dispatch.hpp"
#include "moe/core/scratch.hpp"
#include "moe/core/types.hpp"
#include "moe/kernels/vectors.hpp"
#include "moe/runtime/workers.hpp"

namespace moe::inline MOE_TARGET {

/// y.col(token of s) += weight of s · answers.col(place[s]) for each slot s, in the order of the plan whatever the
/// threads do. A weight that was on the input counts for 1 here.
/// @param y      (d_model × n_tokens)
/// @param place  of each slot's answer; null where they lie in the order of the plan
template <class Answers, class Scalar = typename Answers::Scalar>
void combine(const Answers& answers, const DispatchPlan<Scalar>& plan, MatrixRef<Scalar> y, Workers& workers,
             const Index* place = nullptr) {
  workers.for_each_band(y.rows(), Scratch::alignment / sizeof(Scalar), [&](Index first, Index last, Scratch&) {
    for (Index s = 0; s < plan.num_slots(); ++s) {
      const Scalar* const answer = answers.data() + (place ? place[s] : s) * answers.outerStride();
      Scalar* const to = y.data() + plan.token[std::size_t(s)] * y.outerStride();
      kernels::add_scaled(plan.output_weight(s), answer + first, to + first, last - first);
    }
  });
}

}  // namespace moe::inline MOE_TARGET
