// Optimisers against their formulas, and what they refuse.
#include <algorithm>
#include <cmath>
#include <limits>
#include <sstream>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "compare.hpp"
#include "errors.hpp"
#include "moe/moe.hpp"
#include "moe/train.hpp"
#include "pools.hpp"
#include "random.hpp"

namespace moe {
namespace {

using test::error_of;
using test::random_matrix;

/// Two parameters, and gradients that change from step to step.
struct Problem {
  Weight<double> w = random_matrix<Weight<double>>(3, 4, 1), d_w = w;
  Eigen::VectorXd b = random_matrix<Eigen::VectorXd>(3, 1, 2), d_b = b;

  static std::vector<Parameter<double>> list(Weight<double>& w, Eigen::VectorXd& b) {
    std::vector<Parameter<double>> all;
    ParameterVisitor<double> visit(all);
    visit("weight", w);
    visit("bias", b);
    return all;
  }
  std::vector<Parameter<double>> parameters() { return list(w, b); }
  std::vector<Parameter<double>> gradients(unsigned step) {
    d_w = random_matrix<Weight<double>>(3, 4, 10 + step);
    d_b = random_matrix<Eigen::VectorXd>(3, 1, 20 + step);
    return list(d_w, d_b);
  }
};

TEST(AdamW, IsItsFormula) {
  Problem problem;
  const AdamWOptions o{.learning_rate = 0.1, .beta1 = 0.8, .beta2 = 0.95, .epsilon = 1e-3, .weight_decay = 0.2};
  AdamW<double> adam(problem.parameters(), o);
  double p = problem.w(1, 2), m = 0, v = 0;
  for (unsigned step = 1; step <= 5; ++step) {
    adam.step(problem.gradients(step));
    const double g = problem.d_w(1, 2);
    m = o.beta1 * m + (1 - o.beta1) * g;
    v = o.beta2 * v + (1 - o.beta2) * g * g;
    const double mean = m / (1 - std::pow(o.beta1, step)), square = v / (1 - std::pow(o.beta2, step));
    p -= o.learning_rate * (o.weight_decay * p + mean / (std::sqrt(square) + o.epsilon));
    EXPECT_NEAR(problem.w(1, 2), p, 1e-14) << step;
  }
  EXPECT_EQ(adam.steps(), 5);
}

template <class S>
std::vector<Parameter<S>> list(Weight<S>& w) {
  std::vector<Parameter<S>> all;
  ParameterVisitor<S> visit(all);
  visit("w", w);
  return all;
}

/// Magnitudes of gradients, each beside each other in whole registers and behind them.
template <class S>
std::vector<S> magnitudes() {
  using Limits = std::numeric_limits<S>;
  std::vector<S> all{0, Limits::denorm_min(), Limits::min(), Limits::max()};
  for (int exponent = Limits::min_exponent10; exponent <= Limits::max_exponent10; exponent += 4) {
    all.push_back(S(std::pow(10.0, exponent)));
  }
  for (const double g : {1.8e19, 1.9e19, 0.3, 2.7}) all.push_back(S(g));
  return all;
}

TEST(AdamW, StepsAsInDoubleForEveryFiniteGradient) {
  const std::vector<float> g = magnitudes<float>();
  const Index num = Index(3 * g.size());  // no multiple of a register
  for (const AdamWOptions& o : {AdamWOptions{}, AdamWOptions{.learning_rate = 2, .beta1 = 0, .beta2 = 0.5}}) {
    Weight<float> w(1, num), d_w(1, num);
    AdamW<float> adam(list(w), o);
    const auto state = adam.state();
    for (int step = 1; step <= 6; ++step) {
      w.setZero();  // so that what is left is the step, rounded once
      for (Index i = 0; i < num; ++i) {
        const float sign = (i + step) % 3 == 0 ? -1 : 1;
        d_w(i) = sign * g[std::size_t(i % 2 == 0 ? i : i * step * 7) % g.size()];  // the same again, or others
      }
      const Eigen::ArrayXd m = state[1].array().cast<double>(), root = state[2].array().cast<double>();
      adam.step(list(d_w));
      for (Index i = 0; i < num; ++i) {
        const double grad = d_w(i), mean = o.beta1 * m(i) + (1 - o.beta1) * grad;
        const double square = o.beta2 * root(i) * root(i) + (1 - o.beta2) * grad * grad;
        const double expected = o.learning_rate * mean / (1 - std::pow(o.beta1, step)) /
                                (std::sqrt(square / (1 - std::pow(o.beta2, step))) + o.epsilon);
        ASSERT_TRUE(std::isfinite(expected));
        EXPECT_NEAR(-double(w(i)), expected, 1e-5 * std::abs(expected) + std::numeric_limits<float>::denorm_min())
            << "step " << step << ", gradient " << d_w(i) << ", mean " << m(i) << ", root " << root(i);
      }
    }
  }
}

TEST(AdamW, OfDoublesStepsByTheLearningRateWhateverTheGradient) {
  std::vector<double> g = magnitudes<double>();
  std::erase_if(g, [](double number) { return number < 1e-2; });  // beside ε = 1e-8
  Weight<double> w = Weight<double>::Zero(1, Index(g.size())), d_w = w;
  for (Index i = 0; i < w.size(); ++i) d_w(i) = i % 2 == 0 ? g[std::size_t(i)] : -g[std::size_t(i)];
  AdamW<double> adam(list(w), {.learning_rate = 1e-3, .weight_decay = 0});
  for (int step = 1; step <= 5; ++step) {
    adam.step(list(d_w));
    for (Index i = 0; i < w.size(); ++i) {
      const double expected = (i % 2 == 0 ? -1e-3 : 1e-3) * step;
      EXPECT_NEAR(w(i), expected, 2e-6 * std::abs(expected)) << d_w(i) << ", step " << step;
    }
  }
}

TEST(Sgd, RefusesAStepThatOverflowsAndChangesNothing) {
  const float huge = std::numeric_limits<float>::max();
  struct Case {
    float value, velocity, gradient;
    SgdOptions options;
    std::string told;
  };
  for (const auto& [value, velocity, gradient, options, told] :
       {Case{0, 0, huge, {.learning_rate = 10}, "up to 3.40282e+38, its learning rate 10"},
        Case{1, huge, huge, {.learning_rate = 1e-3, .momentum = 0.9}, "up to 3.40282e+38, its learning rate 0.001"},
        Case{huge, 0, -huge, {.learning_rate = 0.5}, "up to 3.40282e+38, its learning rate 0.5"},
        Case{huge, 0, 2, {.learning_rate = 1, .weight_decay = 2}, "up to 2, its learning rate 1"}}) {
    for (const Index place : {0, 15, 16, 36}) {  // in registers, and behind them
      test::OwnThreads pool{3};
      Weight<float> first = random_matrix<Weight<float>>(40, 60, 1), second = random_matrix<Weight<float>>(1, 37, 2);
      Weight<float> d_first = random_matrix<Weight<float>>(40, 60, 3),
                    d_second = random_matrix<Weight<float>>(1, 37, 4);
      const auto both = [](Weight<float>& one, Weight<float>& other) {
        return std::vector<Parameter<float>>{{"first", one.data(), one.rows(), one.cols()},
                                             {"second", other.data(), other.rows(), other.cols()}};
      };
      Sgd<float> sgd(both(first, second), options);
      const auto state = sgd.state();
      second(place) = value;
      state[1].array()(place) = velocity;
      d_second(place) = gradient;
      const Weight<float> first_before = first, second_before = second, velocity_before = state[1].matrix();
      EXPECT_EQ(error_of([&] { sgd.step(both(d_first, d_second), pool); }),
                "Sgd: second would not be finite after this step: its gradient is " + told +
                    "; clip the gradients, or lower it");
      EXPECT_TRUE(test::same_bits(first, first_before));
      EXPECT_TRUE(test::same_bits(second, second_before));
      EXPECT_TRUE((state[0].array() == 0).all());
      EXPECT_TRUE(test::same_bits(Weight<float>(state[1].matrix()), velocity_before));
    }
  }
}

template <class Optimiser, class Options>
void expect_that_place_is_no_matter(const Options& options) {
  using S = typename Optimiser::Scalar;
  const Index num = 90;
  const auto numbers = [&](unsigned seed) { return random_matrix<Eigen::Matrix<S, Eigen::Dynamic, 1>>(num, 1, seed); };
  auto whole = numbers(1), whole_gradient = whole, parts = whole, parts_gradient = whole;
  whole.setZero();  // so that no bit of a step is lost
  parts.setZero();
  std::vector<Parameter<S>> one, one_gradient, many, many_gradient;
  one.push_back({"all", whole.data(), num, 1});
  one_gradient.push_back({"all", whole_gradient.data(), num, 1});
  Index first = 0;
  for (const Index size : {1, 16, 2, 17, 3, 31, 20}) {  // no register of theirs is one of the whole's
    many.push_back({std::to_string(first), parts.data() + first, size, 1});
    many_gradient.push_back({std::to_string(first), parts_gradient.data() + first, size, 1});
    first += size;
  }
  ASSERT_EQ(first, num);
  Optimiser together(one, options), apart(many, options);
  for (unsigned step = 0; step < 4; ++step) {
    const auto gradient = numbers(2 + step);  // copied to where the others lie
    whole_gradient = gradient;
    parts_gradient = gradient;
    together.step(one_gradient);
    apart.step(many_gradient);
    EXPECT_TRUE(test::same_bits(parts, whole)) << "step " << step;
  }
}

TEST(Optimisers, GiveTheSameBitsWhereverANumberLies) {
  expect_that_place_is_no_matter<AdamW<float>>(AdamWOptions{});
  expect_that_place_is_no_matter<AdamW<double>>(AdamWOptions{});
  expect_that_place_is_no_matter<Sgd<float>>(SgdOptions{.momentum = 0.9, .weight_decay = 0.1});
  expect_that_place_is_no_matter<Sgd<double>>(SgdOptions{.momentum = 0.9, .weight_decay = 0.1});
}

TEST(Optimisers, GiveTheSameBitsOnAnyNumberOfThreads) {
  Weight<float> alone = random_matrix<Weight<float>>(170, 90, 1), together = alone;
  AdamW<float> one(list(alone)), many(list(together));
  Sgd<float> sgd_one(list(alone), {.momentum = 0.9}), sgd_many(list(together), {.momentum = 0.9});
  test::OwnThreads pool{3};
  for (unsigned step = 0; step < 3; ++step) {
    Weight<float> gradient = random_matrix<Weight<float>>(170, 90, 2 + step), same = gradient;
    EXPECT_EQ(clip_gradients(list(gradient), 1), clip_gradients(list(same), 1, pool));
    EXPECT_TRUE(test::same_bits(same, gradient));
    one.step(list(gradient));
    many.step(list(gradient), pool);
    sgd_one.step(list(gradient));
    sgd_many.step(list(gradient), pool);
    EXPECT_TRUE(test::same_bits(together, alone));
  }
}

/// Of parameters that end within a register, or have no number.
template <class Optimiser, class Options>
void expect_that_taking_is_three_calls(const Options& options) {
  using S = typename Optimiser::Scalar;
  test::OwnThreads pool{3};
  constexpr Index L = kernels::lanes<S>;
  for (const double max_norm : {1e-3, 1e3, std::numeric_limits<double>::infinity()}) {
    std::vector<std::vector<S>> apart, together, d_apart, d_together;
    for (const Index size : {Index(0), Index(1), L - 1, L, L + 1, Index(5000)}) {
      apart.emplace_back(std::size_t(size), S(0));
      together = d_apart = d_together = apart;
    }
    const auto list_of = [](std::vector<std::vector<S>>& all) {
      std::vector<Parameter<S>> its;
      for (auto& numbers : all) its.push_back({std::to_string(its.size()), numbers.data(), 1, Index(numbers.size())});
      return its;
    };
    Optimiser one(list_of(apart), options), other(list_of(together), options);
    for (unsigned step = 0; step < 3; ++step) {
      for (std::size_t p = 0; p < apart.size(); ++p) {
        const auto numbers = random_matrix<Eigen::Matrix<S, Eigen::Dynamic, 1>>(Index(apart[p].size()), 1, 7 * step);
        std::copy_n(numbers.data(), numbers.size(), d_apart[p].data());
        std::copy_n(numbers.data(), numbers.size(), d_together[p].data());
      }
      const double norm = clip_gradients(list_of(d_apart), max_norm);
      one.step(list_of(d_apart));
      if (step == 1) {  // part after part, by the norm of both: here of one optimiser, so of all that it has
        EXPECT_EQ(other.take(list_of(d_together), {.max_norm = max_norm, .norm = norm}, pool), norm);
      } else {
        EXPECT_EQ(other.take(list_of(d_together), {.max_norm = max_norm}, pool), norm);
      }
      EXPECT_EQ(together, apart) << "step " << step << ", at most " << max_norm;
      for (const auto& numbers : d_together) EXPECT_EQ(numbers, std::vector<S>(numbers.size(), S(0)));
    }
  }
}

TEST(Optimisers, TakeAsTheyClipAndStepAndLeaveZeros) {
  expect_that_taking_is_three_calls<AdamW<float>>(AdamWOptions{});
  expect_that_taking_is_three_calls<AdamW<double>>(AdamWOptions{});
  expect_that_taking_is_three_calls<Sgd<float>>(SgdOptions{.momentum = 0.9, .weight_decay = 0.1});
  expect_that_taking_is_three_calls<Sgd<double>>(SgdOptions{.momentum = 0.9, .weight_decay = 0.1});
}

template <class Optimiser>
void expect_that_taking_refuses() {
  constexpr double infinity = std::numeric_limits<double>::infinity();
  Problem problem;
  Optimiser optimiser(problem.parameters());
  const auto gradients = problem.gradients(1);
  const Problem before = problem;
  EXPECT_EQ(error_of([&] { optimiser.take(gradients, {.max_norm = 0}); }),
            "take: max_norm is 0.000000, expected more than 0");
  EXPECT_EQ(error_of([&] { optimiser.take(gradients, {.norm = infinity}); }),
            "take: norm is inf, expected a finite one of at least " + std::to_string(gradient_norm(gradients)) +
                ", that of these gradients alone: give that of all, as they are now");
  for (const double stale : {0.99 * gradient_norm(gradients), -1.0, std::nan("")}) {
    EXPECT_NE(error_of([&] { optimiser.take(gradients, {.norm = stale}); }).find("as they are now"), std::string::npos)
        << stale;
  }
  EXPECT_TRUE(test::same_bits(problem.d_w, before.d_w));
  problem.d_b(2) = infinity;
  EXPECT_EQ(error_of([&] { optimiser.take(gradients); }), "optimiser: the gradient of bias is not finite");
  EXPECT_EQ(error_of([&] { optimiser.take(gradients, {.norm = 1.0}); }),
            "optimiser: the gradient of bias is not finite");
  EXPECT_TRUE(test::same_bits(problem.w, before.w));
  EXPECT_TRUE(test::same_bits(problem.d_w, before.d_w));
  const auto huge = problem.gradients(1);
  problem.d_w *= 1e200;  // whose squares are not finite
  problem.d_b.setZero();
  if (std::is_same_v<Optimiser, AdamW<double>>) {
    EXPECT_EQ(optimiser.take(huge), infinity);
    EXPECT_FALSE(test::same_bits(problem.w, before.w));
    EXPECT_TRUE((problem.d_w.array() == 0).all());
  }
}

TEST(Optimisers, TakeNothingThatIsNotFinite) {
  expect_that_taking_refuses<AdamW<double>>();
  expect_that_taking_refuses<Sgd<double>>();
}

TEST(ForEachPiece, MeetsEachNumberOnce) {
  test::OwnThreads pool{3};
  for (const Index size : {0, 1, 15, 64, 65, 2047, 2049, 64 * 64 - 1, 64 * 64 + 1, 300000}) {
    std::vector<float> first(std::size_t(size), 1), second(7, 1), third(std::size_t(size), 1);
    const std::vector<Parameter<float>> all{{"first", first.data(), 1, size},
                                            {"none", nullptr, 0, 0},
                                            {"second", second.data(), 7, 1},
                                            {"third", third.data(), size, 1}};
    for_each_piece(all, pool,
                   [&](Index, std::size_t p, Index begin, Index count) { all[p].array().segment(begin, count) += 1; });
    for (const auto& parameter : all) EXPECT_TRUE((parameter.array() == 2).all()) << parameter.name << " of " << size;
    set_to_zero(all, pool);
    for (const auto& parameter : all) EXPECT_TRUE((parameter.array() == 0).all()) << parameter.name << " of " << size;
  }
}

TEST(Sgd, IsItsFormula) {
  Problem problem;
  const SgdOptions o{.learning_rate = 0.1, .momentum = 0.9, .weight_decay = 0.2};
  Sgd<double> sgd(problem.parameters(), o);
  double p = problem.b(1), velocity = 0;
  for (unsigned step = 1; step <= 5; ++step) {
    sgd.step(problem.gradients(step));
    velocity = o.momentum * velocity + problem.d_b(1) + o.weight_decay * p;
    p -= o.learning_rate * velocity;
    EXPECT_NEAR(problem.b(1), p, 1e-14) << step;
  }
}

/// A group's parameters go as they would alone with options of their own; the others as if there were no group.
template <class Optimiser, class Options>
void expect_groups_are_options(const Options& base) {
  Options other = base;
  other.learning_rate *= 0.5;
  other.weight_decay = 0;
  Problem grouped, plain, apart;
  Optimiser with_group(grouped.parameters(), base,
                       {{.patterns = {"*bias"}, .learning_rate = 0.5}, {.patterns = {"b*"}, .weight_decay = 0}});
  Optimiser without(plain.parameters(), base), with_others(apart.parameters(), other);
  for (unsigned step = 0; step < 5; ++step) {
    with_group.step(grouped.gradients(step));
    without.step(plain.gradients(step));
    with_others.step(apart.gradients(step));
  }
  EXPECT_TRUE(test::same_bits(grouped.w, plain.w));
  EXPECT_TRUE(test::same_bits(grouped.b, apart.b));
  EXPECT_FALSE(test::same_bits(grouped.b, plain.b));
}

TEST(ParameterGroup, IsAnOptimiserWithOptionsOfItsOwn) {
  expect_groups_are_options<AdamW<double>>(AdamWOptions{.learning_rate = 0.1, .weight_decay = 0.2});
  expect_groups_are_options<Sgd<double>>(SgdOptions{.learning_rate = 0.1, .momentum = 0.9, .weight_decay = 0.2});
}

TEST(ParameterGroup, FollowsTheSchedule) {
  Problem grouped, plain;
  AdamW<double> with_group(grouped.parameters(), {.learning_rate = 1}, {{.patterns = {"bias"}, .learning_rate = 0.25}});
  AdamW<double> without(plain.parameters(), {.learning_rate = 1});
  for (unsigned step = 0; step < 3; ++step) {
    with_group.options().learning_rate = 0.1 * (step + 1);
    without.options().learning_rate = 0.025 * (step + 1);
    with_group.step(grouped.gradients(step));
    without.step(plain.gradients(step));
  }
  EXPECT_TRUE(test::is_close(grouped.b, plain.b));
}

TEST(ParameterGroup, OfRateZeroStays) {
  Problem problem;
  const Problem before = problem;
  AdamW<double> adam(problem.parameters(), {}, {{.patterns = {"weight"}, .learning_rate = 0}});
  adam.step(problem.gradients(1));
  EXPECT_TRUE(test::same_bits(problem.w, before.w));
  EXPECT_FALSE(test::same_bits(problem.b, before.b));
}

TEST(ParameterGroup, RefusesAPatternThatFitsNothingAndBadFactors) {
  Problem problem;
  const auto error_with = [&](const ParameterGroup& group) {
    const std::string of_adam = error_of([&] { AdamW<double>(problem.parameters(), {}, {group}); });
    EXPECT_EQ(error_of([&] { Sgd<double>(problem.parameters(), {}, {group}); }), of_adam);
    return of_adam;
  };
  EXPECT_EQ(error_with({{"weight", "norm*"}}), "matching: no parameter of 2 fits \"norm*\"");
  EXPECT_EQ(error_with({.patterns = {"*"}, .learning_rate = -1}),
            "ParameterGroup: learning_rate is -1, expected 0 to 1.79769e+308");
  EXPECT_EQ(error_with({.patterns = {"*"}, .weight_decay = std::numeric_limits<double>::quiet_NaN()}),
            "ParameterGroup: weight_decay is nan, expected 0 to 1.79769e+308");
}

/// Told when it is made, and of what was changed since by each step and take, which then write nothing.
template <class Optimiser, class Options>
void expect_that_range_is_held(double Options::* option, const std::vector<double>& wrong, const std::string& message) {
  for (const double value : wrong) {
    std::ostringstream expected;
    expected << message.substr(0, message.find('@')) << value << message.substr(message.find('@') + 1);
    Problem problem;
    Options options;
    options.*option = value;
    EXPECT_EQ(error_of([&] { Optimiser(problem.parameters(), options); }), expected.str());
    Optimiser optimiser(problem.parameters());
    optimiser.options().*option = value;
    const Problem before = problem;
    const auto gradients = problem.gradients(1);
    const Weight<double> d_w = problem.d_w;
    EXPECT_EQ(error_of([&] { optimiser.step(gradients); }), expected.str());
    EXPECT_EQ(error_of([&] { optimiser.take(gradients); }), expected.str());
    EXPECT_TRUE(test::same_bits(problem.w, before.w));
    EXPECT_TRUE(test::same_bits(problem.d_w, d_w));
    for (const auto& state : optimiser.state()) EXPECT_TRUE((state.array() == 0).all()) << state.name;
  }
}

TEST(Optimisers, RefuseOptionsThatAreOutOfRange) {
  const double nan = std::numeric_limits<double>::quiet_NaN(), infinity = std::numeric_limits<double>::infinity();
  const std::vector<double> none{-1, nan, infinity, -infinity};
  const std::string range = " is @, expected 0 to 1.79769e+308";
  expect_that_range_is_held<Sgd<double>>(&SgdOptions::learning_rate, none, "Sgd: learning_rate" + range);
  expect_that_range_is_held<Sgd<double>>(&SgdOptions::momentum, none, "Sgd: momentum" + range);
  expect_that_range_is_held<Sgd<double>>(&SgdOptions::weight_decay, none, "Sgd: weight_decay" + range);
  using Adam = AdamW<double>;
  expect_that_range_is_held<Adam>(&AdamWOptions::learning_rate, none, "AdamW: learning_rate" + range);
  expect_that_range_is_held<Adam>(&AdamWOptions::weight_decay, none, "AdamW: weight_decay" + range);
  expect_that_range_is_held<Adam>(&AdamWOptions::beta1, {-1, nan, 1.5}, "AdamW: beta1 is @, expected 0 to 1");
  expect_that_range_is_held<Adam>(&AdamWOptions::beta2, {-1, nan, 1.5}, "AdamW: beta2 is @, expected 0 to 1");
  expect_that_range_is_held<Adam>(&AdamWOptions::beta1, {1}, "AdamW: beta1 is @, expected less");
  expect_that_range_is_held<Adam>(&AdamWOptions::beta2, {1}, "AdamW: beta2 is @, expected less");
  expect_that_range_is_held<Adam>(&AdamWOptions::epsilon, {0, -1, nan, infinity},
                                  "AdamW: epsilon is @, expected 2.22507e-308 to 1.79769e+308");
  Weight<float> w(1, 1);  // whose range is less
  EXPECT_EQ(error_of([&] { AdamW<float>(list(w), {.learning_rate = 1e39}); }),
            "AdamW: learning_rate is 1e+39, expected 0 to 3.40282e+38");
}

TEST(Optimisers, WithARateOfZeroChangeNoParameter) {
  Problem problem;
  const Problem before = problem;
  AdamW<double>(problem.parameters(), {.learning_rate = 0}).step(problem.gradients(1));
  Sgd<double>(problem.parameters(), {.learning_rate = 0}).step(problem.gradients(1));
  EXPECT_TRUE(test::same_bits(problem.w, before.w));
}

TEST(Optimisers, RefuseAParameterThatWouldLearnTwice) {
  Problem problem;
  const auto complaint = [](const std::vector<Parameter<double>>& parameters) {
    const std::string of_adam = error_of([&] { AdamW<double> adam(parameters); });
    EXPECT_EQ(error_of([&] { Sgd<double> sgd(parameters); }), of_adam);
    return of_adam;
  };
  auto twice = problem.parameters();
  twice.push_back({"tied", twice[0].data, 3, 4});
  EXPECT_EQ(complaint(twice), "optimiser: weight and tied share memory, expected each parameter once");
  twice.back() = {"last row", twice[0].data + 8, 1, 4};
  EXPECT_EQ(complaint(twice), "optimiser: weight and last row share memory, expected each parameter once");
  std::vector<Parameter<double>> rows{{"second", twice[0].data + 4, 2, 4}, {"first", twice[0].data, 1, 4}};
  EXPECT_EQ(complaint(rows), "no error");
  rows.push_back({"none", rows[0].data, 0, 4});
  EXPECT_EQ(complaint(rows), "no error");
}

TEST(Optimisers, RefuseWhatIsNotFiniteAndWriteNothing) {
  for (const double bad : {std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity()}) {
    Problem problem;
    const auto before = problem.w;
    auto gradients = problem.gradients(1);
    problem.d_b(2) = bad;
    AdamW<double> adam(problem.parameters());
    Sgd<double> sgd(problem.parameters());
    EXPECT_EQ(error_of([&] { adam.step(gradients); }), "optimiser: the gradient of bias is not finite");
    EXPECT_EQ(error_of([&] { sgd.step(gradients); }), "optimiser: the gradient of bias is not finite");
    EXPECT_EQ(problem.w, before);
    EXPECT_EQ(adam.steps(), 0);
  }
}

TEST(Optimisers, FindWhatIsNotFiniteWhereverItIs) {
  test::OwnThreads pool{3};
  Weight<float> gradient = random_matrix<Weight<float>>(70, 90, 1, 1e30);
  const auto all = list(gradient);
  require_finite(all, pool);
  for (const Index place : {Index(0), Index(63), Index(64), Index(3001), gradient.size() - 1}) {
    for (const float bad : {std::numeric_limits<float>::quiet_NaN(), -std::numeric_limits<float>::infinity()}) {
      const float good = std::exchange(gradient.data()[place], bad);
      EXPECT_EQ(error_of([&] { require_finite(all, pool); }), "optimiser: the gradient of w is not finite") << place;
      gradient.data()[place] = good;
    }
  }
}

TEST(Optimisers, RefuseGradientsOfOtherParameters) {
  Problem problem;
  Weight<double> wide(3, 5);
  AdamW<double> adam(problem.parameters());
  EXPECT_EQ(error_of([&] { adam.step(Problem::list(wide, problem.d_b)); }),
            "optimiser: gradient 0 is of weight (3 × 5), expected weight (3 × 4)");
  auto one = problem.gradients(1);
  one.pop_back();
  EXPECT_EQ(error_of([&] { adam.step(one); }), "optimiser: gradients.size() is 1, expected 2");
}

TEST(ClipGradients, ScalesAllOfThemTogether) {
  Problem problem;
  const auto gradients = problem.gradients(1);
  const double norm = std::sqrt(problem.d_w.squaredNorm() + problem.d_b.squaredNorm());
  const Weight<double> before = problem.d_w;
  EXPECT_NEAR(clip_gradients(gradients, 2 * norm), norm, 1e-14);
  EXPECT_EQ(problem.d_w, before);
  EXPECT_NEAR(clip_gradients(gradients, norm / 4), norm, 1e-14);
  EXPECT_TRUE(problem.d_w.isApprox(before / 4));
  EXPECT_NEAR(clip_gradients(gradients, norm), norm / 4, 1e-14);
  EXPECT_EQ(error_of([&] { clip_gradients(gradients, 0); }),
            "clip_gradients: max_norm is 0.000000, expected more than 0");
}

TEST(WarmUpCosine, RisesThenFalls) {
  const WarmUpCosine rate{.warm_up = 4, .steps = 24, .lowest = 0.1};
  EXPECT_EQ(rate(0), 0.25);
  EXPECT_EQ(rate(3), 1);
  EXPECT_EQ(rate(4), 1);
  EXPECT_NEAR(rate(14), 0.55, 1e-15);
  EXPECT_NEAR(rate(24), 0.1, 1e-15);
  EXPECT_NEAR(rate(1000), 0.1, 1e-15);
  EXPECT_EQ(WarmUpCosine{}(0), 1);
}

/// y = x learnt from nothing but examples.
TEST(Training, ALayerLearnsAFunction) {
  const Index d = 8, tokens = 64;
  MoeLayer layer(LinearTopK<float>(random_weight<float>(4, d, 1), {.top_k = 2, .renormalize = true}),
                 random_bank<float>(4, d, 16, 2));
  auto gradient = zeros_like(layer);
  auto tape = tape_of(layer);
  AdamW<float> adam(parameters(layer), {.learning_rate = 1e-2, .weight_decay = 0});
  const auto error_after = [&](unsigned steps) {
    double error = 0;
    for (unsigned step = 0; step < steps; ++step) {
      const auto x = random_matrix<Matrix<float>>(d, tokens, 100 + step);
      Matrix<float> y(d, tokens), d_x = Matrix<float>::Zero(d, tokens);
      forward(layer, x, y, tape);
      const Matrix<float> miss = y - x;
      error = double(miss.squaredNorm()) / double(x.squaredNorm());
      set_to_zero(parameters(gradient));
      backward(layer, x, miss / float(tokens), tape, d_x, gradient);
      adam.step(parameters(gradient));
    }
    return error;
  };
  const double first = error_after(1), last = error_after(1000);
  EXPECT_GT(first, 0.5);
  EXPECT_LT(last, 0.05);
}

}  // namespace
}  // namespace moe
