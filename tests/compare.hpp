/// @file  Two ways for matrices to be equal: to rounding, or to the last bit.
#pragma once

#include <cmath>
#include <cstring>
#include <limits>

#include <gtest/gtest.h>

#include "moe/core/types.hpp"

namespace moe::test {

/// 64·ε·(1 + ‖expected‖∞): what some hundred roundings of random sign add up to, relative to numbers of order one.
template <class Scalar>
double tolerance(double largest_expected) {
  return 64 * static_cast<double>(std::numeric_limits<Scalar>::epsilon()) * (1 + largest_expected);
}

/// Equal to the rounding of A's scalar. A NaN is close to nothing.
template <class A, class B>
testing::AssertionResult is_close(const A& actual, const B& expected) {
  if (actual.rows() != expected.rows() || actual.cols() != expected.cols()) {
    return testing::AssertionFailure() << "shape is " << actual.rows() << " × " << actual.cols() << ", expected "
                                       << expected.rows() << " × " << expected.cols();
  }
  if (actual.size() == 0) return testing::AssertionSuccess();
  const auto accepted = tolerance<typename A::Scalar>(static_cast<double>(expected.cwiseAbs().maxCoeff()));
  for (Index c = 0; c < actual.cols(); ++c) {
    for (Index r = 0; r < actual.rows(); ++r) {
      const auto got = static_cast<double>(actual(r, c)), want = static_cast<double>(expected(r, c));
      if (!(std::abs(got - want) <= accepted)) {
        return testing::AssertionFailure() << "(" << r << ", " << c << ") is " << got << ", expected " << want
                                           << ": off by " << std::abs(got - want) << ", accepted " << accepted;
      }
    }
  }
  return testing::AssertionSuccess();
}

/// Equal to the last bit: a NaN equals itself, 0 does not equal −0.
template <class A, class B>
testing::AssertionResult same_bits(const A& actual, const B& expected) {
  static_assert(std::is_same_v<typename A::Scalar, typename B::Scalar>);
  using Scalar = typename A::Scalar;
  if (actual.rows() != expected.rows() || actual.cols() != expected.cols()) {
    return testing::AssertionFailure() << "shape is " << actual.rows() << " × " << actual.cols() << ", expected "
                                       << expected.rows() << " × " << expected.cols();
  }
  for (Index c = 0; c < actual.cols(); ++c) {
    for (Index r = 0; r < actual.rows(); ++r) {
      const Scalar got = actual(r, c), want = expected(r, c);
      if (std::memcmp(&got, &want, sizeof got) != 0) {
        return testing::AssertionFailure()
               << "(" << r << ", " << c << ") is " << got << ", expected exactly " << want << ": off by " << got - want;
      }
    }
  }
  return testing::AssertionSuccess();
}

}  // namespace moe::test
