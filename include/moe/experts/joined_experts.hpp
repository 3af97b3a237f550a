/// @file  Several groups of experts as one.
#pragma once

#include <concepts>
#include <cstddef>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>

#include "moe/core/check.hpp"
#include "moe/core/concepts.hpp"
#include "moe/core/contracts.hpp"
#include "moe/core/dispatch.hpp"
#include "moe/core/types.hpp"
#include "moe/runtime/workers.hpp"

namespace moe::inline MOE_TARGET {

/// The experts of the first group, then those of the second, …: a bank beside zero-compute experts, banks of different
/// d_ff, or any other mixture that keeps each group's own fast path.
///   JoinedExperts(bank, ExpertList(std::vector(256, CopyExpert<float>{d_model})))
template <class First, class... Others>
class JoinedExperts {
  static_assert(is_group_of_experts<First>() && (is_group_of_experts<Others>() && ...));
  static_assert((are_of_one_scalar<First, Others>() && ...));

 public:
  using Scalar = typename First::Scalar;

  /// @throws std::invalid_argument if the groups differ in d_model.
  explicit JoinedExperts(First first, Others... others) : groups_(std::move(first), std::move(others)...) {
    for_each_group([&](auto i, Index first_expert) {
      require_equal(group<i>().d_model(), d_model(),
                    "JoinedExperts: d_model of the group from expert " + std::to_string(first_expert) + " on");
    });
  }

  Index d_model() const { return group<0>().d_model(); }
  Index num_experts() const {
    return std::apply([](const auto&... group) { return (Index(group.num_experts()) + ...); }, groups_);
  }
  /// Group i of those that are joined.
  template <std::size_t i>
  const auto& group() const {
    return std::get<i>(groups_);
  }
  /// The same, to write.
  template <std::size_t i>
  auto& group() {
    return std::get<i>(groups_);
  }

  void apply(const ConstMatrixRef<Scalar>& x, const DispatchPlan<Scalar>& plan, MatrixRef<Scalar> y,
             Workers& workers) const {
    require_group(*this, x, plan, y, "JoinedExperts");
    for_each_group([&](auto i, Index first_expert) {
      group<i>().apply(x, plan.experts(first_expert, group<i>().num_experts(), workers.shared()), y, workers);
    });
  }

  /// Experts of all groups are numbered in one row.
  template <class Visit>
  void visit_parameters(Visit& visit) {
    for_each_group([&](auto i, Index first_expert) { visit.from(first_expert, group<i>()); });
  }

  /// f(i, its first expert) for each group<i>(), where i is an std::integral_constant.
  template <class F>
  void for_each_group(const F& f) const {
    [&]<std::size_t... i>(std::index_sequence<i...>) {
      Index first = 0;
      ((f(std::integral_constant<std::size_t, i>{}, first), first += group<i>().num_experts()), ...);
    }(std::index_sequence_for<First, Others...>{});
  }

 private:
  std::tuple<First, Others...> groups_;
};

}  // namespace moe::inline MOE_TARGET
