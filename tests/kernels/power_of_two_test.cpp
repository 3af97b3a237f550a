// A power of two as large as numbers are, and square roots, against their definitions.
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include <gtest/gtest.h>

#include "moe/kernels/power_of_two.hpp"
#include "moe/kernels/square_root.hpp"

namespace moe {
namespace {

template <class S>
class PowerOfTwo : public testing::Test {};
using Scalars = testing::Types<float, double>;
TYPED_TEST_SUITE(PowerOfTwo, Scalars);

/// Of every size: 0, what is below the normal ones, the smallest and largest of these, and what lies beside powers
/// of 2.
template <class S>
std::vector<S> numbers() {
  using Limits = std::numeric_limits<S>;
  std::vector<S> all{0, Limits::denorm_min(), Limits::min() / 2, Limits::min(), Limits::max(), S(1.5)};
  for (int e = Limits::min_exponent; e < Limits::max_exponent; e += 7) {
    const S power = std::ldexp(S(1), e);
    for (const S number : {power, std::nextafter(power, S(0)), std::nextafter(power, Limits::max())}) {
      all.push_back(number);
    }
  }
  return all;
}

TYPED_TEST(PowerOfTwo, IsAQuarterToAllOfTheLargestNumberInEachLane) {
  using S = TypeParam;
  using V = kernels::Lanes<S>;
  using Limits = std::numeric_limits<S>;
  const std::vector<S> all = numbers<S>();
  for (std::size_t at = 0; at < all.size(); ++at) {
    V first{}, second{};
    for (std::size_t i = 0; i < std::size_t(kernels::lanes<S>); ++i) {
      first[i] = (i % 2 == 0 ? 1 : -1) * all[(at + i) % all.size()];
      second[i] = (i % 3 == 0 ? -1 : 1) * all[(7 * at + 5 * i) % all.size()];
    }
    const kernels::PowerOfTwo<S> size(first, second);
    const V value = size.value(), inverse = size.inverse();
    for (std::size_t i = 0; i < std::size_t(kernels::lanes<S>); ++i) {
      const S largest = std::max(std::abs(first[i]), std::abs(second[i]));
      int exponent = 0;
      EXPECT_EQ(std::frexp(value[i], &exponent), S(0.5)) << value[i];
      EXPECT_EQ(value[i] * inverse[i], S(1)) << value[i];
      EXPECT_TRUE(std::isnormal(value[i]) && std::isnormal(inverse[i])) << value[i];
      if (largest < Limits::min()) {
        EXPECT_EQ(value[i], Limits::min()) << largest;
      } else {
        EXPECT_LE(value[i], largest);
        EXPECT_LT(largest / 4, value[i]);
      }
    }
  }
}

TYPED_TEST(PowerOfTwo, SquareRootsAreRoundedCorrectly) {
  using S = TypeParam;
  using V = kernels::Lanes<S>;
  const std::vector<S> all = numbers<S>();
  for (std::size_t at = 0; at < all.size(); ++at) {
    V x{};
    for (std::size_t i = 0; i < std::size_t(kernels::lanes<S>); ++i) x[i] = all[(at + i) % all.size()];
    const V root = kernels::square_root(x);
    for (std::size_t i = 0; i < std::size_t(kernels::lanes<S>); ++i) EXPECT_EQ(root[i], std::sqrt(x[i])) << x[i];
  }
}

}  // namespace
}  // namespace moe
