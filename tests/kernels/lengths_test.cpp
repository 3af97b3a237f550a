// A number has the same answer wherever it stands: in a register, behind the last one, alone; ±∞, NaN and the largest
// too.
#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "moe/core/types.hpp"
#include "moe/experts/activation.hpp"
#include "moe/kernels/lanes.hpp"
#include "moe/kernels/scores.hpp"
#include "moe/train/experts/activation.hpp"
#include "moe/train/optimisers/adamw.hpp"
#include "moe/train/optimisers/sgd.hpp"

namespace moe {
namespace {

template <class S>
using Numbers = Eigen::Array<S, Eigen::Dynamic, 1, Eigen::ColMajor, 64, 1>;  // as gradients hold them

template <class S>
const std::vector<S>& odd_numbers() {
  using Limits = std::numeric_limits<S>;
  static const std::vector<S> all{Limits::quiet_NaN(),
                                  Limits::infinity(),
                                  -Limits::infinity(),
                                  Limits::max(),
                                  Limits::lowest(),
                                  S(1e38),
                                  S(-1e38),
                                  1000,
                                  -1000,
                                  710,
                                  -710,
                                  88.5,
                                  -88.5,
                                  87,
                                  -87,
                                  20,
                                  -20,
                                  7.5,
                                  -7.5,
                                  1,
                                  -1,
                                  S(0.3),
                                  S(-0.3),
                                  S(1e-39),
                                  S(-1e-39),
                                  Limits::min(),
                                  0};
  return all;
}

/// The same number, or both NaN.
template <class S>
bool is_same(S a, S b) {
  return a == b || (std::isnan(a) && std::isnan(b));
}

/// f of many numbers is f of each.
template <class S>
void expect_no_length_to_matter(const std::string& name, const std::function<Numbers<S>(const Numbers<S>&)>& f) {
  const std::vector<S>& odd = odd_numbers<S>();
  std::vector<S> alone;
  for (const S number : odd) alone.push_back(f(Numbers<S>::Constant(1, number))(0));
  for (Index length = 1; length <= 2 * kernels::lanes<S> + 1; ++length) {
    for (std::size_t first = 0; first < odd.size(); ++first) {  // so that each stands everywhere
      const auto which = [&](Index i) { return (first + std::size_t(i)) % odd.size(); };
      Numbers<S> x(length);
      for (Index i = 0; i < length; ++i) x(i) = odd[which(i)];
      const Numbers<S> y = f(x);
      for (Index i = 0; i < length; ++i) {
        ASSERT_TRUE(is_same(y(i), alone[which(i)])) << name << " of " << x(i) << ", number " << i << " of " << length
                                                    << ", is " << y(i) << ", and alone " << alone[which(i)];
      }
    }
  }
}

template <class S>
class Lengths : public testing::Test {};
using Scalars = testing::Types<float, double>;
TYPED_TEST_SUITE(Lengths, Scalars);

TYPED_TEST(Lengths, DoNotMatterToActivationsNorToTheirSlopes) {
  using X = Numbers<TypeParam>;
  const auto check = [](const std::string& name, const auto& act) {
    expect_no_length_to_matter<TypeParam>(name, [&](const X& x) { return X(act(x)); });
    expect_no_length_to_matter<TypeParam>("slope of " + name, [&](const X& x) { return slope(act, x); });
  };
  check("Silu", Silu());
  check("Relu", Relu());
  check("ReluSquared", ReluSquared());
  check("Gelu", Gelu());
  check("GeluTanh", GeluTanh());
}

TYPED_TEST(Lengths, DoNotMatterToGatedActivationsNorToTheirSlopes) {
  using X = Numbers<TypeParam>;
  const auto check = [](const std::string& name, const auto& act) {
    for (const TypeParam other : {TypeParam(0.7), TypeParam(-30), std::numeric_limits<TypeParam>::infinity()}) {
      const auto beside = [&](const X& x) { return X(X::Constant(x.size(), other)); };
      expect_no_length_to_matter<TypeParam>(name + " of gates", [&](const X& x) { return X(act(x, beside(x))); });
      expect_no_length_to_matter<TypeParam>(name + " of ups", [&](const X& x) { return X(act(beside(x), x)); });
      for (const bool by_gate : {true, false}) {
        for (const bool of_gates : {true, false}) {
          expect_no_length_to_matter<TypeParam>("slope of " + name, [&](const X& x) {
            X gate(x.size()), up(x.size());
            slopes(act, of_gates ? x : beside(x), of_gates ? beside(x) : x, gate, up);
            return by_gate ? gate : up;
          });
        }
      }
    }
  };
  check("SwiGlu", SwiGlu());
  check("GeGlu", GeGlu());
  check("GeGluTanh", GeGluTanh());
  check("ReGlu", ReGlu());
  check("GptOssGlu", GptOssGlu());
  check("ClampedInputGlu", ClampedInputGlu<Silu>());
  check("ClampedOutputGlu", ClampedOutputGlu<Silu>());
  check("SoftcappedSwiGlu", SoftcappedSwiGlu());
  check("SoftcappedSwiGlu without caps", SoftcappedSwiGlu{0, 0});
}

TYPED_TEST(Lengths, DoNotMatterToScores) {
  using X = Numbers<TypeParam>;
  expect_no_length_to_matter<TypeParam>("sigmoid", [](const X& x) {
    X s = x;
    sigmoid(x, s);
    return s;
  });
  expect_no_length_to_matter<TypeParam>("sqrt_softplus", [](const X& x) {
    X s = x;
    sqrt_softplus(x, s);
    return s;
  });
  expect_no_length_to_matter<TypeParam>("exponentials", [](const X& x) {
    X s(1 + x.size());  // behind the largest
    s(0) = 8;
    for (Index i = 0; i < x.size(); ++i) s(1 + i) = x(i) < 8 ? x(i) : 8;
    exponentials(s, s);
    return X(s.tail(x.size()));
  });
}

TYPED_TEST(Lengths, DoNotMatterToOptimisers) {
  using X = Numbers<TypeParam>;
  const auto check = [](const std::string& name, const auto& make) {
    expect_no_length_to_matter<TypeParam>(name, [&](const X& x) {
      X gradient = x.isFinite().select(x / 4, TypeParam(0)), w = X::Zero(x.size());
      const auto list = [](X& of) { return std::vector<Parameter<TypeParam>>{{"w", of.data(), of.size(), 1}}; };
      auto optimiser = make(list(w));
      for (int step = 0; step < 3; ++step) optimiser.step(list(gradient));
      return w;
    });
  };
  check("AdamW", [](const auto& w) { return AdamW<TypeParam>(w); });
  check("Sgd", [](const auto& w) { return Sgd<TypeParam>(w, {.learning_rate = 1e-3, .momentum = 0.5}); });
}

/// Far from 0 an activation is what it tends to: no infinity comes of a finite number, nor of one that it makes small.
TYPED_TEST(Lengths, EndWhereActivationsEnd) {
  using S = TypeParam;
  using X = Numbers<S>;
  for (const S x : {S(-1000), std::numeric_limits<S>::lowest(), -std::numeric_limits<S>::infinity()}) {
    EXPECT_NEAR(X(Silu()(X::Constant(1, x)))(0), 0, 1e-36) << x;
    EXPECT_NEAR(slope(Silu(), X(X::Constant(1, x)))(0), 0, 1e-36) << x;
    EXPECT_NEAR(X(GptOssGlu()(X::Constant(1, x), X::Constant(1, S(3))))(0), 0, 1e-35) << x;
    EXPECT_NEAR(X(SoftcappedSwiGlu()(X::Constant(1, x), X::Constant(1, S(3))))(0), 0, 1e-35) << x;
    EXPECT_EQ(X(SoftcappedSwiGlu()(X::Constant(1, -x), X::Constant(1, x)))(0), -100) << x;
    const auto check = [&](const auto& act) {
      EXPECT_NEAR(X(act(X::Constant(1, x)))(0), 0, 1e-36) << x;
      EXPECT_NEAR(slope(act, X(X::Constant(1, x)))(0), 0, 1e-6) << x;
      EXPECT_EQ(X(act(X::Constant(1, -x)))(0), -x);
      EXPECT_NEAR(slope(act, X(X::Constant(1, -x)))(0), 1, 1e-6) << -x;
    };
    check(Silu());
    check(Gelu());
    check(GeluTanh());
  }
}

}  // namespace
}  // namespace moe
