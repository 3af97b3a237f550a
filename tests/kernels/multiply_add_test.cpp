// Multiply-adds are what they say, and no flag of a compiler makes them another.
#include "moe/kernels/multiply_add.hpp"

#include <cmath>
#include <limits>

#include <gtest/gtest.h>

#include "compare.hpp"
#include "moe/kernels/vectors.hpp"
#include "random.hpp"

namespace moe::kernels {
namespace {

using test::Random;
using test::same_bits;

#if defined(__FMA__) || defined(__AVX512F__) || defined(__aarch64__)
constexpr bool fused = true;
#else
constexpr bool fused = false;
#endif

template <class S>
using Vector = Eigen::Matrix<S, Eigen::Dynamic, 1>;

template <class S>
class MultiplyAdd : public testing::Test {};
using Scalars = testing::Types<float, double>;
TYPED_TEST_SUITE(MultiplyAdd, Scalars);

TYPED_TEST(MultiplyAdd, IsRoundedOnceWhereTheProcessorHasAnInstructionForIt) {
  using S = TypeParam;
  volatile S small = std::numeric_limits<S>::epsilon();
  const S a = 1 + small, b = 1 - small;  // a · b = 1 − ε², which rounds to 1
  const S expected = fused ? -small * small : S(0);
  EXPECT_EQ(multiply_add(a, b, S(-1)), expected);
  const auto sums = multiply_add(a - Lanes<S>{}, b - Lanes<S>{}, S(-1) - Lanes<S>{});
  for (int l = 0; l < lanes<S>; ++l) EXPECT_EQ(sums[l], expected) << "lane " << l;
}

TYPED_TEST(MultiplyAdd, IsTheSameOfOneNumberAndOfARegister) {
  using S = TypeParam;
  Random random(1);
  for (int i = 0; i < 1000; ++i) {
    const auto x = random.matrix<Matrix<S>>(lanes<S>, 3);
    const auto at = [&](Index c) { return load_as<Lanes<S>>(x.col(c).data()); };
    const auto sums = multiply_add(at(0), at(1), at(2));
    for (int l = 0; l < lanes<S>; ++l) ASSERT_EQ(sums[l], multiply_add(x(l, 0), x(l, 1), x(l, 2)));
  }
}

TYPED_TEST(MultiplyAdd, OfVectorsDependsOnNoPlaceInMemory) {
  using S = TypeParam;
  Random random(1);
  for (const Index size : {0, 1, 2, 3, 7, 8, 15, 16, 17, 31, 64, 67, 130, 257}) {
    const Vector<S> a = random.matrix<Matrix<S>>(size, 1), b = random.matrix<Matrix<S>>(size, 1);
    const S expected = dot(a, b);
    EXPECT_NEAR(double(expected), double(a.dot(b)), double(size) * double(std::numeric_limits<S>::epsilon()));
    Vector<S> sums = a, elementwise = a;
    add_scaled(S(0.3), b, sums);
    add_scaled(b, b, elementwise);
    for (Index i = 0; i < size; ++i) {
      EXPECT_EQ(sums(i), multiply_add(S(0.3), b(i), a(i)));
      EXPECT_EQ(elementwise(i), multiply_add(b(i), b(i), a(i)));
    }
    for (Index offset = 0; offset < 17; ++offset) {
      Vector<S> memory_of_a = Vector<S>::Zero(size + 17), memory_of_b = memory_of_a;
      auto moved_a = memory_of_a.segment(offset, size), moved_b = memory_of_b.segment(16 - offset, size);
      moved_a = a;
      moved_b = b;
      EXPECT_EQ(dot(moved_a, moved_b), expected) << size << " numbers, moved by " << offset;
      add_scaled(S(0.3), moved_b, moved_a);
      EXPECT_TRUE(same_bits(Vector<S>(moved_a), sums)) << size << " numbers, moved by " << offset;
    }
  }
}

// -ffast-math is refused by moe/core/target.hpp, and so is what g++ tells of. clang++ tells nothing of
// -fassociative-math.
TYPED_TEST(MultiplyAdd, NothingElseIsReordered) {
  using S = TypeParam;
  volatile S of_large = 1 / std::numeric_limits<S>::epsilon(), of_one = S(0.25);
  const S large = of_large, one = of_one;
  EXPECT_EQ((large + one) - large, S(0)) << "compiled with -fassociative-math?";
  const Lanes<S> larges = large - Lanes<S>{}, ones = one - Lanes<S>{};
  EXPECT_EQ(((larges + ones) - larges)[0], S(0)) << "compiled with -fassociative-math?";
  volatile S not_a_number = std::numeric_limits<S>::quiet_NaN();
  const S nan = not_a_number;
  EXPECT_TRUE(nan != nan && std::isnan(nan)) << "compiled with -ffinite-math-only?";
}

}  // namespace
}  // namespace moe::kernels
