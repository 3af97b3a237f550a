/// @file  Groups routes by expert.
#pragma once

#include <cstddef>
#include <numeric>
#include <span>
#include <string>
#include <vector>

#include "moe/core/check.hpp"
#include "moe/core/routing.hpp"
#include "moe/core/scratch.hpp"
#include "moe/core/types.hpp"

namespace moe::inline MOE_TARGET {

/// Routes grouped by expert (CSR): expert e owns slots [first(e), first(e) + count(e)). A view: it copies nothing, and
/// lasts as long as the memory behind it.
template <class Scalar>
struct DispatchPlan {
  std::span<const Index> offset;   // num_experts + 1
  std::span<const Index> token;    // of each slot
  std::span<const Scalar> weight;  // of each slot
  std::span<const Index> route;    // which route fills the slot: backward writes its gradient there
  WeightOn weight_on = WeightOn::output;

  Index num_experts() const { return static_cast<Index>(offset.size()) - 1; }
  Index num_slots() const { return static_cast<Index>(token.size()); }     ///< Routes that were not dropped.
  Index first(Index expert) const { return offset[std::size_t(expert)]; }  ///< The slot where an expert's begin.
  /// How many slots an expert has.
  Index count(Index expert) const { return offset[std::size_t(expert) + 1] - first(expert); }

  /// A slot's weight where it multiplies what the expert reads, else 1.
  Scalar input_weight(Index slot) const { return weight_on == WeightOn::input ? weight[std::size_t(slot)] : Scalar(1); }
  /// A slot's weight where it multiplies what the expert answers, else 1.
  Scalar output_weight(Index slot) const {
    return weight_on == WeightOn::output ? weight[std::size_t(slot)] : Scalar(1);
  }

  /// The plan of experts [first_expert, first_expert + count) alone, numbered from 0.
  DispatchPlan experts(Index first_expert, Index count, Scratch& scratch) const {
    auto* const offsets = scratch.array<Index>(count + 1);
    const Index begin = first(first_expert);
    for (Index e = 0; e <= count; ++e) offsets[e] = first(first_expert + e) - begin;
    const auto slots = [&](auto all) { return all.subspan(std::size_t(begin), std::size_t(offsets[count])); };
    return {{offsets, std::size_t(count) + 1}, slots(token), slots(weight), slots(route), weight_on};
  }
};

/// What every group of experts asks of its x, plan and y.
/// @throws std::invalid_argument naming both numbers.
template <class Group, class X, class Scalar, class Y>
void require_group(const Group& group, const X& x, const DispatchPlan<Scalar>& plan, const Y& y, const char* who) {
  const Index d_model = group.d_model(), num_experts = group.num_experts();
  if (x.rows() == d_model && y.rows() == d_model && y.cols() == x.cols() && plan.num_experts() == num_experts) return;
  const std::string name(who);  // here, because an apply that goes well allocates nothing
  require_equal(x.rows(), d_model, name + ": x.rows()");
  require_equal(y.rows(), d_model, name + ": y.rows()");
  require_equal(y.cols(), x.cols(), name + ": y.cols()");
  require_equal(plan.num_experts(), num_experts, name + ": plan.num_experts()");
}

/// What a plan lies in; kept from call to call, so that a warm call allocates nothing.
template <class Scalar>
struct PlanMemory {
  std::vector<Index> offset, token, route;
  std::vector<Scalar> weight;
  WeightOn weight_on = WeightOn::output;

  std::size_t bytes() const { return detail::held_bytes(offset, token, route, weight); }  ///< Held.

  /// The plan that lies in it.
  DispatchPlan<Scalar> view() const { return {offset, token, weight, route, weight_on}; }
};

/// Counting sort, stable: inside an expert the tokens keep the router's order, so results never depend on threads.
/// Dropped routes get no slot.
/// @throws std::invalid_argument if a route names a token or an expert that is not there, or lacks one of its parts.
template <class Scalar>
DispatchPlan<Scalar> plan_dispatch(const Routing<Scalar>& routing, Index num_tokens, Index num_experts,
                                   PlanMemory<Scalar>& memory) {
  require_routes(routing, num_tokens, num_experts);
  auto& [offset, token, route, weight, weight_on] = memory;
  offset.assign(std::size_t(num_experts) + 1, 0);
  for (Index r = 0; r < routing.size(); ++r) {
    if (!routing.is_dropped(r)) ++offset[std::size_t(routing[r].expert) + 1];
  }
  std::partial_sum(offset.begin(), offset.end(), offset.begin());

  const auto num_slots = std::size_t(offset.back());
  token.resize(num_slots);
  weight.resize(num_slots);
  route.resize(num_slots);
  for (Index r = 0; r < routing.size(); ++r) {  // offset[e] walks from first(e) to first(e + 1) …
    if (routing.is_dropped(r)) continue;
    const auto its = routing[r];
    const auto slot = std::size_t(offset[std::size_t(its.expert)]++);
    token[slot] = its.token, weight[slot] = its.weight, route[slot] = r;
  }
  for (auto e = std::size_t(num_experts); e > 0; --e) offset[e] = offset[e - 1];  // … and back
  offset[0] = 0;
  weight_on = routing.weight_on;
  return memory.view();
}

/// Every token goes to this one expert and counts for 1: what a dense layer does.
template <class Scalar>
DispatchPlan<Scalar> plan_all_to(Index expert, Index num_tokens, Index num_experts, PlanMemory<Scalar>& memory) {
  auto& [offset, token, route, weight, weight_on] = memory;
  offset.assign(std::size_t(num_experts) + 1, 0);
  for (auto e = std::size_t(expert) + 1; e < offset.size(); ++e) offset[e] = num_tokens;
  token.resize(std::size_t(num_tokens));
  std::iota(token.begin(), token.end(), Index(0));
  route = token;
  weight.assign(std::size_t(num_tokens), Scalar(1));
  weight_on = WeightOn::output;
  return memory.view();
}

}  // namespace moe::inline MOE_TARGET
