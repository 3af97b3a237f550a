/// @file  Gradients of several groups of experts as one.
#pragma once

#include <span>
#include <tuple>
#include <utility>

#include "moe/core/dispatch.hpp"
#include "moe/core/types.hpp"
#include "moe/experts/joined_experts.hpp"
#include "moe/runtime/workers.hpp"

namespace moe::inline MOE_TARGET {

/// A tape for each group.
template <class... Tapes>
struct JoinedExpertsTape {
  std::tuple<Tapes...> groups;
};

template <class First, class... Others>
auto tape_of(const JoinedExperts<First, Others...>&) {
  return JoinedExpertsTape<decltype(tape_of(std::declval<const First&>())),
                           decltype(tape_of(std::declval<const Others&>()))...>{};
}

/// As joined.apply(), and keeps in `tape` what backward() needs.
template <class... G, class... Tapes, class Scalar = typename JoinedExperts<G...>::Scalar>
void apply(const JoinedExperts<G...>& joined, const ConstMatrixRef<Scalar>& x, const DispatchPlan<Scalar>& plan,
           MatrixRef<Scalar> y, JoinedExpertsTape<Tapes...>& tape, Workers& workers) {
  joined.for_each_group([&](auto i, Index first_expert) {
    const auto& group = joined.template group<i>();
    apply(group, x, plan.experts(first_expert, group.num_experts(), workers.shared()), y, std::get<i>(tape.groups),
          workers);
  });
}

/// As backward() of a bank: experts/ffn_bank.hpp.
template <class... G, class... Tapes, class Gradient, class Scalar = typename JoinedExperts<G...>::Scalar>
void backward(const JoinedExperts<G...>& joined, const ConstMatrixRef<Scalar>& x, const DispatchPlan<Scalar>& plan,
              const ConstMatrixRef<Scalar>& d_y, const JoinedExpertsTape<Tapes...>& tape, std::span<Scalar> d_weight,
              MatrixRef<Scalar> d_x, Gradient& gradient, Workers& workers) {
  require_group(joined, x, plan, d_x, "backward");
  joined.for_each_group([&](auto i, Index first_expert) {
    const auto& group = joined.template group<i>();
    backward(group, x, plan.experts(first_expert, group.num_experts(), workers.shared()), d_y, std::get<i>(tape.groups),
             d_weight, d_x, gradient.template group<i>(), workers);
  });
}

}  // namespace moe::inline MOE_TARGET
