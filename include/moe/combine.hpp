/// @file  Adds what experts answered to the tokens that asked.
#pragma once

#include "moe/dispatch.hpp"
#include "moe/kernels/lanes.hpp"
#include "moe/kernels/multiply_add.hpp"
#include "moe/scratch.hpp"
#include "moe/types.hpp"
#include "moe/workers.hpp"

namespace moe::inline MOE_TARGET {

namespace detail {

/// y[i] += weight · x[i], as a bank adds its answers.
template <class S>
MOE_KERNEL void add_weighted(S weight, const S* x, S* y, Index size) {
  using Register = kernels::Lanes<S>;
  const Register weights = weight - Register{};  // the same number in each lane
  Index i = 0;
  for (; i + kernels::lanes<S> <= size; i += kernels::lanes<S>) {
    const auto sum = kernels::load_as<Register>(y + i);
    kernels::store(y + i, kernels::multiply_add(weights, kernels::load_as<Register>(x + i), sum));
  }
  for (; i < size; ++i) y[i] = kernels::multiply_add(weight, x[i], y[i]);
}

}  // namespace detail

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
      detail::add_weighted(plan.output_weight(s), answer + first, to + first, last - first);
    }
  });
}

}  // namespace moe::inline MOE_TARGET
