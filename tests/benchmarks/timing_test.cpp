#include "../../benchmarks/timing.hpp"

#include <string>

#include <gtest/gtest.h>

using namespace moe::bench;

namespace {

/// Things that pretend to take their time, and write down who was called.
std::vector<std::function<double()>> pretend(const std::vector<double>& seconds, std::string& called) {
  std::vector<std::function<double()>> things;
  for (std::size_t i = 0; i < seconds.size(); ++i) {
    things.emplace_back([&called, name = char('A' + i), takes = seconds[i]] {
      called += name;
      return takes;
    });
  }
  return things;
}

}  // namespace

TEST(Median, IsTheMiddleOne) {
  EXPECT_EQ(median({5}), 5);
  EXPECT_EQ(median({9, 1, 5}), 5);
}

TEST(TimeInTurn, ThingsTakeTurnsUntilTheBudgetIsUsedUp) {
  std::string called;
  const auto seconds = time_in_turn(pretend({0.5, 0.25}, called), 2);
  EXPECT_EQ(called, "ABABABAB");                         // a round to warm up, then three of 0.75 s
  EXPECT_EQ(seconds[0], (std::vector<double>(3, 0.5)));  // the first call is not counted
  EXPECT_EQ(seconds[1], (std::vector<double>(3, 0.25)));
}

TEST(TimeInTurn, WhatExceedsTheBudgetAloneIsCalledOnceAndCounts) {
  std::string called;
  const auto seconds = time_in_turn(pretend({0.5, 7, 0.25}, called), 0.7);
  EXPECT_EQ(called, "ABCAC");
  EXPECT_EQ(seconds[1], (std::vector<double>{7}));
}

TEST(TimeInTurn, EverythingIsMeasuredOnceAtLeast) {
  std::string called;
  const auto seconds = time_in_turn(pretend({1, 1}, called), 1);
  EXPECT_EQ(called, "ABAB");
  EXPECT_EQ(seconds[1].size(), 1U);
}

TEST(TimeInTurn, QuickThingsAreNotCalledForEver) {
  std::string called;
  EXPECT_LT(time_in_turn(pretend({0}, called), 1)[0].size(), 1000U);
}
