/// @file  Groups routes by expert.
#pragma once

#include <iterator>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

#include "moe/check.hpp"
#include "moe/routing.hpp"
#include "moe/types.hpp"

namespace moe {

/// Routes grouped by expert (CSR): expert e owns slots [first(e), first(e) + count(e)).
template <class Scalar>
struct DispatchPlan {
  std::vector<Index> offset;   // num_experts + 1
  std::vector<Index> token;    // of each slot
  std::vector<Scalar> weight;  // of each slot
  std::vector<Index> route;    // which route fills the slot: backward writes its gradient there
  WeightOn weight_on = WeightOn::output;

  Index num_experts() const { return static_cast<Index>(offset.size()) - 1; }
  Index num_slots() const { return static_cast<Index>(token.size()); }
  Index first(Index expert) const { return offset[std::size_t(expert)]; }
  Index count(Index expert) const { return offset[std::size_t(expert) + 1] - first(expert); }
};

/// Counting sort, stable: inside an expert the tokens keep the router's order, so results never depend on threads.
/// @throws std::invalid_argument if a route names a token or an expert that is not there, or lacks one of its parts.
template <class Scalar>
void plan_dispatch(const Routing<Scalar>& routing, Index num_tokens, Index num_experts, DispatchPlan<Scalar>& plan) {
  const auto num_routes = routing.token.size();
  require_equal(std::ssize(routing.expert), routing.size(), "Routing: expert.size()");
  require_equal(std::ssize(routing.weight), routing.size(), "Routing: weight.size()");
  plan.weight_on = routing.weight_on;
  plan.offset.assign(std::size_t(num_experts) + 1, 0);
  for (std::size_t r = 0; r < num_routes; ++r) {
    const Index e = routing.expert[r], t = routing.token[r];
    if (e < 0 || e >= num_experts || t < 0 || t >= num_tokens) {
      throw std::invalid_argument("Routing: route " + std::to_string(r) + " sends token " + std::to_string(t) + " of " +
                                  std::to_string(num_tokens) + " to expert " + std::to_string(e) + " of " +
                                  std::to_string(num_experts));
    }
    ++plan.offset[std::size_t(e) + 1];
  }
  std::partial_sum(plan.offset.begin(), plan.offset.end(), plan.offset.begin());

  plan.token.resize(num_routes);
  plan.weight.resize(num_routes);
  plan.route.resize(num_routes);
  for (std::size_t r = 0; r < num_routes; ++r) {  // offset[e] walks from first(e) to first(e + 1) …
    const auto slot = std::size_t(plan.offset[std::size_t(routing.expert[r])]++);
    plan.token[slot] = routing.token[r];
    plan.weight[slot] = routing.weight[r];
    plan.route[slot] = Index(r);
  }
  for (auto e = std::size_t(num_experts); e > 0; --e) plan.offset[e] = plan.offset[e - 1];  // … and back
  plan.offset[0] = 0;
}

/// Every token goes to this one expert and counts for 1: what a dense layer does.
template <class Scalar>
void plan_all_to(Index expert, Index num_tokens, Index num_experts, DispatchPlan<Scalar>& plan) {
  plan.weight_on = WeightOn::output;
  plan.offset.assign(std::size_t(num_experts) + 1, 0);
  for (auto e = std::size_t(expert) + 1; e < plan.offset.size(); ++e) plan.offset[e] = num_tokens;
  plan.token.resize(std::size_t(num_tokens));
  std::iota(plan.token.begin(), plan.token.end(), Index(0));
  plan.route = plan.token;
  plan.weight.assign(std::size_t(num_tokens), Scalar(1));
}

}  // namespace moe
