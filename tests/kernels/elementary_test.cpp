// Functions of our own against the C library's in double.
#include "moe/kernels/elementary.hpp"

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numbers>

#include <gtest/gtest.h>

#include "compare.hpp"
#include "moe/experts/activation.hpp"
#include "moe/kernels/scores.hpp"
#include "moe/train/experts/activation.hpp"
#include "random.hpp"

namespace moe::kernels {
namespace {

constexpr double infinity = std::numeric_limits<double>::infinity();
const double root = std::sqrt(2 / std::numbers::pi);

double cdf(double x) { return std::erfc(-x / std::numbers::sqrt2) / 2; }
double gelu(double x) { return x * cdf(x); }
double gelu_slope(double x) { return cdf(x) + x * std::exp(-x * x / 2) / std::sqrt(2 * std::numbers::pi); }
double sigma(double x) { return 1 / (1 + std::exp(-2 * root * (x + 0.044715 * x * x * x))); }
double gelu_tanh(double x) { return x * sigma(x); }
double gelu_tanh_slope(double x) { return sigma(x) + x * sigma(x) * sigma(-x) * 2 * root * (1 + 3 * 0.044715 * x * x); }
double exact_tanh(double x) { return std::tanh(x); }
double exact_softplus(double x) { return std::max(x, 0.0) + std::log1p(std::exp(-std::abs(x))); }

/// The largest |f(x) − exact(x)| in units of the last place of exact(x), and at all, of every 4099th float in
/// [lowest, highest].
struct Errors {
  double ulps = 0, absolute = 0;
};
template <class F>
Errors errors_of(double (*exact)(double), double lowest, double highest) {
  Errors most;
  for (std::uint32_t bits = 0; bits < 0x7f800000; bits += 4099) {
    for (const float x : {std::bit_cast<float>(bits), std::bit_cast<float>(bits | 0x80000000)}) {
      if (x < lowest || x > highest) continue;
      const double expected = exact(x), off = std::abs(double(OnRegisters<F>()(x)) - expected);
      most.absolute = std::max(most.absolute, off);
      if (expected == 0) continue;
      const double ulp = std::max(std::ldexp(1.0, std::ilogb(expected) - 23), 0x1p-149);
      most.ulps = std::max(most.ulps, off / ulp);
    }
  }
  return most;
}

TEST(Elementary, FunctionsAreAsExactAsTheySay) {
  EXPECT_LE(errors_of<GeluOf>(gelu, -13, infinity).ulps, 8);
  EXPECT_LE(errors_of<GeluOf>(gelu, -infinity, -13).absolute, 1e-37);
  EXPECT_LE(errors_of<GeluSlope>(gelu_slope, -infinity, 1e30).absolute, 2.5e-7);
  EXPECT_LE(errors_of<GeluTanhOf>(gelu_tanh, -4, infinity).ulps, is_fused ? 16 : 18);
  EXPECT_LE(errors_of<GeluTanhOf>(gelu_tanh, -infinity, -4).absolute, 1e-9);
  EXPECT_LE(errors_of<GeluTanhSlope>(gelu_tanh_slope, -1e6, 1e6).absolute, 2.5e-7);
  EXPECT_LE(errors_of<TanhOf>(exact_tanh, -infinity, infinity).ulps, 2);
  EXPECT_LE(errors_of<SoftplusOf>(exact_softplus, -86, infinity).ulps, 5);
  EXPECT_LE(errors_of<SoftplusOf>(exact_softplus, -infinity, -86).absolute, 1e-40);
}

TEST(Elementary, FunctionsHaveTheirLimits) {
  constexpr auto inf = std::numeric_limits<float>::infinity(), nan = std::numeric_limits<float>::quiet_NaN();
  const auto all = [](float x) { return Eigen::Array<float, 4, 1>::Constant(x).eval(); };
  for (const Index i : {0, 3}) {
    EXPECT_EQ(Gelu()(all(inf))(i), inf);
    EXPECT_EQ(Gelu()(all(-inf))(i), 0);
    EXPECT_EQ(Gelu()(all(0))(i), 0);
    EXPECT_EQ(GeluTanh()(all(inf))(i), inf);
    EXPECT_EQ(GeluTanh()(all(-inf))(i), 0);
    EXPECT_EQ(slope(Gelu(), all(inf))(i), 1);
    EXPECT_EQ(slope(Gelu(), all(0))(i), 0.5f);
    EXPECT_EQ(slope(GeluTanh(), all(inf))(i), 1);
    EXPECT_EQ(slope(GeluTanh(), all(0))(i), 0.5f);
    EXPECT_TRUE(std::isnan(Gelu()(all(nan))(i)) && std::isnan(GeluTanh()(all(nan))(i)));
    EXPECT_TRUE(std::isnan(slope(Gelu(), all(nan))(i)) && std::isnan(slope(GeluTanh(), all(nan))(i)));
  }
  const auto softcap = [&](float x, float cap) { return moe::detail::softcap(all(x), cap).eval()(3); };
  EXPECT_EQ(softcap(inf, 5), 5);
  EXPECT_EQ(softcap(-inf, 5), -5);
  EXPECT_EQ(softcap(inf, 0), inf);
  EXPECT_TRUE(std::isnan(softcap(nan, 5)) && std::isnan(softcap(nan, 0)));
  EXPECT_EQ(softplus(inf), inf);
  EXPECT_EQ(softplus(-inf), 0);
  EXPECT_TRUE(std::isnan(softplus(nan)));
  EXPECT_NEAR(softplus(0.0f), std::numbers::ln2, 1e-7);
}

// Wherever a number lies in an array, and however many lie beside it.
TEST(Elementary, FunctionsDependOnNoPlaceInMemory) {
  test::Random random(1);
  const Eigen::ArrayXf x = 4 * random.matrix<Matrix<float>>(67, 1).array();
  const Eigen::ArrayXf gelus = Gelu()(x), tanhs = GeluTanh()(x);
  Eigen::ArrayXf scores = x;
  sqrt_softplus(x, scores);
  for (Index first = 0; first < x.size(); ++first) {
    for (const Index size : {Index(1), Index(5), x.size() - first}) {
      if (first + size > x.size()) continue;
      const auto some = [&](const Eigen::ArrayXf& all) { return Eigen::VectorXf(all.segment(first, size).matrix()); };
      Eigen::ArrayXf some_scores = x.segment(first, size);
      sqrt_softplus(x.segment(first, size), some_scores);
      EXPECT_TRUE(test::same_bits(Gelu()(x.segment(first, size)).eval().matrix(), some(gelus)));
      EXPECT_TRUE(test::same_bits(GeluTanh()(x.segment(first, size)).eval().matrix(), some(tanhs)));
      EXPECT_TRUE(test::same_bits(some_scores.matrix(), some(scores)));
    }
  }
}

}  // namespace
}  // namespace moe::kernels
