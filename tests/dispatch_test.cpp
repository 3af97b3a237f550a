#include "moe/core/dispatch.hpp"

#include <algorithm>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "errors.hpp"
#include "random.hpp"

namespace moe {

using test::error_of;
using Indices = std::vector<Index>;

Routing<float> random_routing(Index num_tokens, Index num_experts, Index num_routes) {
  test::Random random(static_cast<unsigned>(num_routes + 1));
  Routing<float> routing;
  for (Index r = 0; r < num_routes; ++r) {
    routing.add(random.below(num_tokens), random.below(num_experts), static_cast<float>(random()));
  }
  return routing;
}

TEST(PlanDispatch, GroupsRoutesByExpertInTheirOrder) {
  Routing<float> routing;
  routing.add(0, 2, 0.5F);
  routing.add(0, 0, 0.25F);
  routing.add(1, 2, 0.125F);
  routing.add(2, 0, 1);
  PlanMemory<float> memory;
  const auto plan = plan_dispatch(routing, 3, 4, memory);
  EXPECT_EQ(memory.offset, (Indices{0, 2, 2, 4, 4}));
  EXPECT_EQ(memory.token, (Indices{0, 2, 0, 1}));
  EXPECT_EQ(memory.route, (Indices{1, 3, 0, 2}));
  EXPECT_EQ(memory.weight, (std::vector<float>{0.25F, 1, 0.5F, 0.125F}));
  EXPECT_EQ(plan.num_experts(), 4);
  EXPECT_EQ(plan.num_slots(), 4);
  EXPECT_EQ(plan.first(2), 2);
  EXPECT_EQ(plan.count(2), 2);
  EXPECT_EQ(plan.count(3), 0);
}

TEST(PlanDispatch, GivesEachRouteOneSlotOfItsExpertAndKeepsTheOrder) {
  PlanMemory<float> memory;  // the same again and again, larger and smaller
  for (const Index num_experts : {1, 3, 8, 64}) {
    for (const Index num_routes : {0, 1, 7, 1000, 5}) {
      const auto routing = random_routing(10, num_experts, num_routes);
      const auto plan = plan_dispatch(routing, 10, num_experts, memory);
      ASSERT_EQ(plan.num_experts(), num_experts);
      ASSERT_EQ(plan.num_slots(), num_routes);
      EXPECT_EQ(plan.offset.front(), 0);
      EXPECT_EQ(plan.offset.back(), num_routes);
      Indices seen;
      for (Index e = 0; e < num_experts; ++e) {
        for (Index s = plan.first(e); s < plan.first(e) + plan.count(e); ++s) {
          const auto slot = std::size_t(s), route = std::size_t(plan.route[slot]);
          EXPECT_EQ(routing.expert[route], e);
          EXPECT_EQ(routing.token[route], plan.token[slot]);
          EXPECT_EQ(routing.weight[route], plan.weight[slot]);
          EXPECT_TRUE(s == plan.first(e) || plan.route[slot - 1] < plan.route[slot]) << "stable";
          seen.push_back(plan.route[slot]);
        }
      }
      std::sort(seen.begin(), seen.end());
      for (Index r = 0; r < num_routes; ++r) EXPECT_EQ(seen.at(std::size_t(r)), r) << "each route once";
    }
  }
}

TEST(PlanDispatch, PassesOverDroppedRoutes) {
  auto routing = random_routing(10, 4, 50);
  for (const Index r : {0, 7, 8, 49}) routing.drop(r);
  EXPECT_EQ(routing.num_dropped(), 4);
  PlanMemory<float> memory;
  const auto plan = plan_dispatch(routing, 10, 4, memory);
  EXPECT_EQ(plan.num_slots(), 46);
  for (const Index r : plan.route) EXPECT_FALSE(routing.is_dropped(r)) << "route " << r;
  routing.dropped.assign(50, 1);
  EXPECT_EQ(plan_dispatch(routing, 10, 4, memory).num_slots(), 0);
  routing.dropped.resize(49);
  EXPECT_EQ(error_of([&] { plan_dispatch(routing, 10, 4, memory); }), "Routing: dropped.size() is 49, expected 50");
}

TEST(DispatchPlan, OfSomeExpertsIsThePlanOfTheirRoutesAlone) {
  const auto routing = random_routing(10, 6, 100);
  PlanMemory<float> memory, expected_memory;
  const auto plan = plan_dispatch(routing, 10, 6, memory);
  Scratch scratch;
  for (const auto& [first, count] : {std::pair<Index, Index>{0, 6}, {0, 2}, {2, 3}, {5, 1}, {6, 0}}) {
    const auto part = plan.experts(first, count, scratch);
    ASSERT_EQ(part.num_experts(), count);
    Index slots = 0;
    for (Index e = 0; e < count; ++e) {
      ASSERT_EQ(part.count(e), plan.count(first + e));
      EXPECT_EQ(part.first(e), slots);
      slots += part.count(e);
      for (Index s = 0; s < part.count(e); ++s) {
        const auto here = std::size_t(part.first(e) + s), there = std::size_t(plan.first(first + e) + s);
        EXPECT_EQ(part.token[here], plan.token[there]);
        EXPECT_EQ(part.route[here], plan.route[there]);
        EXPECT_EQ(part.weight[here], plan.weight[there]);
      }
    }
    EXPECT_EQ(part.num_slots(), slots);
  }
}

TEST(PlanDispatch, CarriesWhereTheWeightsGo) {
  Routing<float> routing;
  routing.weight_on = WeightOn::input;
  PlanMemory<float> memory;
  EXPECT_EQ(plan_dispatch(routing, 0, 1, memory).weight_on, WeightOn::input);
  EXPECT_EQ(memory.offset, (Indices{0, 0}));
  EXPECT_EQ(plan_all_to(0, 0, 1, memory).weight_on, WeightOn::output);
}

TEST(PlanDispatch, RefusesARouteToNowhereWithAllNumbers) {
  const auto complaint = [](Index token, Index expert) {
    Routing<float> routing;
    routing.add(0, 0, 1);
    routing.add(token, expert, 1);
    PlanMemory<float> memory;
    return error_of([&] { plan_dispatch(routing, 5, 3, memory); });
  };
  EXPECT_EQ(complaint(4, 2), "no error");
  EXPECT_EQ(complaint(5, 2), "Routing: route 1 sends token 5 of 5 to expert 2 of 3");
  EXPECT_EQ(complaint(-1, 2), "Routing: route 1 sends token -1 of 5 to expert 2 of 3");
  EXPECT_EQ(complaint(4, 3), "Routing: route 1 sends token 4 of 5 to expert 3 of 3");
  EXPECT_EQ(complaint(4, -7), "Routing: route 1 sends token 4 of 5 to expert -7 of 3");
}

TEST(PlanDispatch, RefusesArraysOfDifferentLengthWithBothNumbers) {
  const auto complaint = [](std::size_t tokens, std::size_t experts, std::size_t weights) {
    Routing<float> routing;
    routing.token.resize(tokens);
    routing.expert.resize(experts);
    routing.weight.resize(weights);
    PlanMemory<float> memory;
    return error_of([&] { plan_dispatch(routing, 1, 1, memory); });
  };
  EXPECT_EQ(complaint(4, 4, 4), "no error");
  EXPECT_EQ(complaint(4, 3, 4), "Routing: expert.size() is 3, expected 4");
  EXPECT_EQ(complaint(4, 5, 4), "Routing: expert.size() is 5, expected 4");
  EXPECT_EQ(complaint(4, 4, 2), "Routing: weight.size() is 2, expected 4");
}

TEST(PlanAllTo, SendsEveryTokenToOneExpertForAWeightOfOne) {
  PlanMemory<double> memory;
  for (const Index num_tokens : {0, 1, 5}) {
    for (const Index expert : {0, 1, 2}) {
      const auto plan = plan_all_to(expert, num_tokens, 3, memory);
      ASSERT_EQ(plan.num_experts(), 3);
      ASSERT_EQ(plan.num_slots(), num_tokens);
      for (Index e = 0; e < 3; ++e) EXPECT_EQ(plan.count(e), e == expert ? num_tokens : 0);
      for (Index t = 0; t < num_tokens; ++t) {
        EXPECT_EQ(plan.token[std::size_t(t)], t);
        EXPECT_EQ(plan.route[std::size_t(t)], t);
        EXPECT_EQ(plan.weight[std::size_t(t)], 1);
      }
    }
  }
}

TEST(Routing, ClearsToWhatItWasWhenNew) {
  auto routing = random_routing(3, 3, 5);
  routing.weight_on = WeightOn::input;
  routing.logits.resize(9);
  routing.drop(1);
  EXPECT_EQ(routing.size(), 5);
  routing.clear();
  EXPECT_EQ(routing.size(), 0);
  EXPECT_TRUE(routing.token.empty() && routing.expert.empty() && routing.weight.empty() && routing.logits.empty());
  EXPECT_EQ(routing.num_dropped(), 0);
  EXPECT_EQ(routing.weight_on, WeightOn::output);
}

}  // namespace moe
