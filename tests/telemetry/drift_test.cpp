/// @file  How far a routing has moved, by hand and by laws.
#include <cmath>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "errors.hpp"
#include "moe/moe.hpp"
#include "moe/telemetry.hpp"
#include "random.hpp"

namespace moe {
namespace {

using test::error_of;

/// Where top_k of num_experts experts send random tokens.
Routing<float> routing_of(Index num_experts, Index top_k, Index num_tokens, unsigned seed) {
  const MoeLayer layer(LinearTopK<float>(random_weight<float>(num_experts, 8, seed), {.top_k = top_k}),
                       random_bank<float>(num_experts, 8, 4, seed));
  Workspace<float> ws;
  Matrix<float> y(8, num_tokens);
  layer.forward(random_tokens<float>(8, num_tokens, 9), y, ws);
  return ws.routing;
}

TEST(RoutingDrift, OfTheSameRoutingIsZero) {
  for (const Index tokens : {1, 7, 64}) {
    const auto routing = routing_of(6, 2, tokens, 1);
    const auto drift = measure_drift(routing, routing, tokens, 6);
    EXPECT_EQ(drift.tokens_changed, 0);
    EXPECT_EQ(drift.first_changed, 0);
    EXPECT_EQ(drift.total().before, 2 * tokens);
    EXPECT_EQ(drift.total().share_changed(), 0);
    EXPECT_EQ(drift.total().weight_changed(), 0);
  }
}

TEST(RoutingDrift, OfExpertsThatAllMoveIsAll) {
  const Index tokens = 50, experts = 6;
  const auto before = routing_of(experts, 1, tokens, 1);
  auto after = before;
  for (Index& e : after.expert) e = (e + 1) % experts;
  const auto drift = measure_drift(before, after, tokens, experts);
  EXPECT_EQ(drift.tokens_changed, tokens);
  EXPECT_EQ(drift.first_changed, tokens);
  EXPECT_EQ(drift.total().share_changed(), 1);
  EXPECT_EQ(drift.total().weight_changed(), 1);
  for (Index e = 0; e < experts; ++e) {
    const auto &was = drift.experts[std::size_t(e)], &is = drift.experts[std::size_t((e + 1) % experts)];
    EXPECT_EQ(was.before, is.after) << e;
    EXPECT_EQ(was.left, was.before) << e;
    EXPECT_EQ(was.came, was.after) << e;
  }
}

TEST(RoutingDrift, TurnsRoundWithTime) {
  const Index tokens = 64;
  const auto before = routing_of(8, 3, tokens, 1), after = routing_of(8, 3, tokens, 2);
  const auto there = measure_drift(before, after, tokens, 8), back = measure_drift(after, before, tokens, 8);
  EXPECT_EQ(there.tokens_changed, back.tokens_changed);
  EXPECT_EQ(there.first_changed, back.first_changed);
  EXPECT_GT(there.first_changed, 0);
  for (std::size_t e = 0; e < 8; ++e) {
    EXPECT_EQ(there.experts[e].left, back.experts[e].came);
    EXPECT_EQ(there.experts[e].before, back.experts[e].after);
    EXPECT_EQ(there.experts[e].share_changed(), back.experts[e].share_changed());
  }
}

TEST(RoutingDrift, IsWhatAHandCounts) {
  Routing<float> before, after;
  const auto route = [](Routing<float>& routing, Index token, Index first, Index second, float weight) {
    routing.add(token, first, weight);
    routing.add(token, second, 1 - weight);
  };
  route(before, 0, 0, 1, 0.75f);
  route(after, 0, 0, 1, 0.625f);  // less sure
  route(before, 1, 0, 2, 0.75f);
  route(after, 1, 2, 0, 0.75f);  // the other first
  route(before, 2, 1, 2, 0.5f);
  route(after, 2, 1, 0, 0.5f);  // another second
  route(before, 3, 2, 1, 0.75f);
  route(after, 3, 2, 1, 0.75f);
  after.drop(7);  // loses its second
  const auto drift = measure_drift(before, after, 4, 4);
  EXPECT_EQ(drift.tokens_changed, 2);
  EXPECT_EQ(drift.first_changed, 2);  // of token 2, 0 is now the lowest of equals
  EXPECT_EQ(to_table(drift),
            "4 tokens: 50.0 % go to other experts, 50.0 % to another first; changed are 20.0 % of routes, 32.3 % of "
            "weights\n"
            "expert  before   after    left    came   changed   weights\n"
            "     0       2       3       0       1    20.0 %    39.1 %\n"
            "     1       3       2       1       0    20.0 %    20.0 %\n"
            "     2       3       2       1       0    20.0 %    33.3 %\n"
            "     3       0       0       0       0         -         -\n");
}

TEST(RoutingDrift, OfNoTokensIsNothing) {
  const auto drift = measure_drift(Routing<float>{}, Routing<float>{}, 0, 2);
  EXPECT_EQ(drift.tokens_changed, 0);
  EXPECT_TRUE(std::isnan(drift.total().share_changed()));
}

TEST(RoutingDrift, RefusesARouteThatLeadsNowhere) {
  Routing<float> routing;
  routing.add(3, 0, 1);
  EXPECT_EQ(error_of([&] { measure_drift(Routing<float>{}, routing, 3, 2); }),
            "Routing: route 0 sends token 3 of 3 to expert 0 of 2");
}

}  // namespace
}  // namespace moe
