// Root mean square normalisation against its naive twin, and its gradients against central differences.
#include "moe/kernels/rms_norm.hpp"

#include <cmath>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "compare.hpp"
#include "errors.hpp"
#include "moe/runtime/executors/serial.hpp"
#include "moe/runtime/workers.hpp"
#include "moe/train/kernels/rms_norm.hpp"
#include "pools.hpp"
#include "random.hpp"

namespace moe {
namespace {

using test::is_close;
using test::random_matrix;
using test::same_bits;

constexpr Index sizes[] = {1, 3, 7, 8, 9, 15, 16, 17, 33, 67};

std::vector<RmsNormOptions> all_options() {
  return {{},
          {.epsilon = 0.1, .offset = 1, .factor = 0.5},
          {.epsilon = 1e-5, .gain_on = GainOn::input},
          {.epsilon = 0.1, .offset = 1, .factor = 0.5, .gain_on = GainOn::input}};
}

template <class Scalar>
RmsNorm<Scalar> random_norm(Index size, const RmsNormOptions& options, unsigned seed = 1) {
  return RmsNorm<Scalar>(random_matrix<Vector<Scalar>>(size, 1, seed), options);
}

Matrix<double> naive(const RmsNorm<float>& norm, const Matrix<float>& x) {
  const RmsNormOptions& options = norm.options();
  Matrix<double> y = x.cast<double>();
  for (Index t = 0; t < x.cols(); ++t) {
    const auto by_gain = [&] {
      for (Index i = 0; i < x.rows(); ++i) y(i, t) *= options.factor * (options.offset + double(norm.gain()(i)));
    };
    if (options.gain_on == GainOn::input) by_gain();
    double squares = 0;
    for (Index i = 0; i < x.rows(); ++i) squares += y(i, t) * y(i, t);
    for (Index i = 0; i < x.rows(); ++i) y(i, t) /= std::sqrt(squares / double(x.rows()) + options.epsilon);
    if (options.gain_on == GainOn::output) by_gain();
  }
  return y;
}

template <class Scalar>
Matrix<Scalar> normed(const RmsNorm<Scalar>& norm, const ConstMatrixRef<Scalar>& x, ExecutorRef executor = Serial{}) {
  std::vector<Scratch> scratch;
  Workers workers(executor, scratch);
  Matrix<Scalar> y(x.rows(), x.cols());
  norm.apply(x, y, workers);
  return y;
}

TEST(RmsNorm, EqualsItsNaiveTwin) {
  for (const auto& options : all_options()) {
    for (const Index size : sizes) {
      for (const Index tokens : {0, 1, 17}) {
        const auto norm = random_norm<float>(size, options);
        const auto x = random_matrix<Matrix<float>>(size, tokens, 2);
        EXPECT_TRUE(is_close(normed(norm, x), naive(norm, x))) << size << ", " << tokens;
      }
    }
  }
}

TEST(RmsNorm, NeitherPlaceNorNeighbourNorThreadChangesABit) {
  for (const auto& options : all_options()) {
    const auto norm = random_norm<float>(33, options);
    const auto x = random_matrix<Matrix<float>>(33, 50, 3);
    const auto y = normed(norm, x);
    Matrix<float> around = Matrix<float>::Constant(36, 52, 9), expected = around;
    around.block(1, 1, 33, 50) = x;
    expected.block(1, 1, 33, 50) = y;
    std::vector<Scratch> scratch;
    Workers workers(Serial{}, scratch);
    norm.apply(around.block(1, 1, 33, 50), around.block(1, 1, 33, 50), workers);  // in place, off any alignment
    EXPECT_TRUE(same_bits(around, expected));
    EXPECT_TRUE(same_bits(normed(norm, x, test::Shuffled{3}), y));
    EXPECT_TRUE(same_bits(normed<float>(norm, x.col(7)), y.col(7).eval()));
  }
}

TEST(RmsNorm, ZeroStaysZeroWithoutAnEpsilonAndANaNStaysWithItsToken) {
  for (const GainOn gain_on : {GainOn::output, GainOn::input}) {
    const auto norm = random_norm<float>(9, {.epsilon = 0, .gain_on = gain_on});
    auto x = random_matrix<Matrix<float>>(9, 3, 4);
    x.col(1).setZero();
    x(5, 2) = std::nanf("");
    const auto y = normed(norm, x);
    EXPECT_TRUE(y.col(1).isZero(0));
    EXPECT_TRUE(y.col(2).array().isNaN().all());
    EXPECT_TRUE(y.leftCols(2).allFinite());
  }
}

TEST(RmsNorm, RefusesANegativeEpsilon) {
  EXPECT_EQ(test::error_of([] { RmsNorm<float>(Vector<float>::Ones(3), {.epsilon = -1}); }),
            "RmsNorm: epsilon is -1.000000, expected 0 or more");
}

TEST(RmsNorm, ItsGradientsAreCentralDifferencesAddedToWhatIsThere) {
  for (const auto& options : all_options()) {
    for (const Index size : sizes) {
      auto norm = random_norm<double>(size, options, 5);
      auto x = random_matrix<Matrix<double>>(size, 4, 6);
      const auto c = random_matrix<Matrix<double>>(size, 4, 7);
      Matrix<double> d_x = c;
      Vector<double> d_gain = norm.gain();
      std::vector<Scratch> scratch;
      Workers workers(Serial{}, scratch);
      backward(norm, x, c, d_x, to_write(d_gain), workers);
      const auto check = [&](double& number, double slope, const char* what) {
        const double was = number, h = 1e-5;
        number = was + h;
        const double above = normed(norm, x).cwiseProduct(c).sum();
        number = was - h;
        const double below = normed(norm, x).cwiseProduct(c).sum();
        number = was;
        EXPECT_NEAR(slope, (above - below) / (2 * h), 1e-7 * (1 + std::abs(slope))) << what << " of " << size;
      };
      for (Index i = 0; i < size; ++i) {
        check(x(i, 2), d_x(i, 2) - c(i, 2), "x");
        check(norm.gain()(i), d_gain(i) - norm.gain()(i), "gain");
      }
    }
  }
}

TEST(RmsNorm, ItsGradientsHaveTheSameBitsOnAnyNumberOfThreads) {
  for (const auto& options : all_options()) {
    const auto norm = random_norm<float>(33, options);
    const auto x = random_matrix<Matrix<float>>(33, 50, 8), c = random_matrix<Matrix<float>>(33, 50, 9);
    const auto gradients = [&](ExecutorRef executor) {
      std::vector<Scratch> scratch;
      Workers workers(executor, scratch);
      Matrix<float> both = Matrix<float>::Zero(33, 51);
      Vector<float> d_gain = Vector<float>::Zero(33);
      backward(norm, x, c, both.leftCols(50), to_write(d_gain), workers);
      both.col(50) = d_gain;
      return both;
    };
    const auto alone = gradients(Serial{});
    for (const Index threads : {2, 3, 7}) EXPECT_TRUE(same_bits(gradients(test::Shuffled{threads}), alone)) << threads;
  }
}

}  // namespace
}  // namespace moe
