#include "moe/core/random_number.hpp"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <map>
#include <vector>

#include <gtest/gtest.h>

#include "moe/core/types.hpp"

namespace moe {
namespace {

// Bounds are five standard deviations of what is measured, over this many numbers.
constexpr std::uint64_t n = 100'000;
const double root_n = std::sqrt(double(n));

TEST(RandomNumber, SeedZeroIsThePublishedSequenceOfSplitMix64) {
  EXPECT_EQ(random_bits(0, 0), 0xe220a8397b1dcdafU);
  EXPECT_EQ(random_bits(0, 1), 0x6e789e6aa1b965f4U);
  EXPECT_EQ(random_bits(0, 2), 0x06c45d188009454fU);
}

TEST(RandomNumber, ValuesAreThoseOfAnIndependentProgram) {
  EXPECT_EQ(uniform_number(1, 0), 0.9557038184179468);
  EXPECT_EQ(uniform_number(1, 2), 0.8286887643182063);
  EXPECT_NEAR(normal_number(1, 0), -0.020661914581578594, 1e-14);
  EXPECT_NEAR(normal_number(1, 1), 0.7450658956628887, 1e-14);
  EXPECT_NEAR(normal_number(1, 3), 0.14655136905199387, 1e-14);
}

TEST(RandomNumber, UniformNumbersFillTheirIntervalEvenly) {
  std::vector<int> in_tenth(10);
  double lowest = 1, highest = 0;
  for (std::uint64_t i = 0; i < n; ++i) {
    const double u = uniform_number(5, i);
    ASSERT_TRUE(0 <= u && u < 1) << u;
    ++in_tenth[std::size_t(10 * u)];
    lowest = std::min(lowest, u);
    highest = std::max(highest, u);
  }
  for (const int count : in_tenth) EXPECT_NEAR(count, n / 10, 5 * root_n * 0.3);  // √(p·(1 − p)) = 0.3
  EXPECT_LT(lowest, 20 / double(n));
  EXPECT_GT(highest, 1 - 20 / double(n));
}

TEST(RandomNumber, NormalNumbersHaveTheMomentsAndTailsOfTheNormalDistribution) {
  double sum = 0, squares = 0, cubes = 0, fourths = 0, neighbours = 0, other_seed = 0, beyond_two = 0;
  for (std::uint64_t i = 0; i < n; ++i) {
    const double x = normal_number(7, i);
    ASSERT_TRUE(std::isfinite(x));
    sum += x, squares += x * x, cubes += x * x * x, fourths += x * x * x * x;
    neighbours += x * normal_number(7, i + 1);
    other_seed += x * normal_number(8, i);
    beyond_two += std::abs(x) > 2 ? 1 : 0;
  }
  EXPECT_NEAR(sum / n, 0, 5 / root_n);
  EXPECT_NEAR(squares / n, 1, 5 * std::sqrt(2.0) / root_n);
  EXPECT_NEAR(cubes / n, 0, 5 * std::sqrt(15.0) / root_n);
  EXPECT_NEAR(fourths / n, 3, 5 * std::sqrt(96.0) / root_n);
  EXPECT_NEAR(neighbours / n, 0, 5 / root_n);
  EXPECT_NEAR(other_seed / n, 0, 5 / root_n);
  const double p = std::erfc(std::sqrt(2.0));
  EXPECT_NEAR(beyond_two / n, p, 5 * std::sqrt(p * (1 - p)) / root_n);
}

TEST(RandomNumber, EverySetIsAsLikelyAsAnother) {
  for (const Index k : {1, 2, 3, 5}) {
    std::map<std::vector<Index>, int> times;
    for (std::uint64_t i = 0; i < n; ++i) {
      std::vector<Index> chosen(std::size_t(k), -1);
      random_set(5, k, 3, i * std::uint64_t(k), chosen.data());
      std::ranges::sort(chosen);
      ASSERT_TRUE(chosen.front() >= 0 && chosen.back() < 5);
      ASSERT_EQ(std::ranges::adjacent_find(chosen), chosen.end());
      ++times[chosen];
    }
    const std::size_t sets = k == 5 ? 1 : k == 1 ? 5 : 10;  // 5 over k
    ASSERT_EQ(times.size(), sets) << k << " of 5";
    const double p = 1 / double(sets);
    for (const auto& [set, count] : times) EXPECT_NEAR(count, n * p, 5 * root_n * std::sqrt(p * (1 - p)));
  }
}

TEST(RandomNumber, ASetMayBeEmptyOrAll) {
  Index one = -1;
  random_set(7, 0, 1, 0, &one);
  EXPECT_EQ(one, -1);
  random_set(1, 1, 1, 0, &one);
  EXPECT_EQ(one, 0);
}

}  // namespace
}  // namespace moe
