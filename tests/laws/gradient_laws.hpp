/// @file  What a backward pass must be: the derivative of the forward pass, for every number that it depends on.
#pragma once

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "allocations.hpp"  // before Eigen

#include <gtest/gtest.h>

#include "compare.hpp"
#include "moe/executors/serial.hpp"
#include "moe/parameters.hpp"
#include "moe/scratch.hpp"
#include "moe/tokens.hpp"
#include "moe/types.hpp"
#include "moe/workspace.hpp"
#include "pools.hpp"
#include "random.hpp"

namespace moe::laws {

/// Below, at and above the width of every register, and of a tile.
inline constexpr Index gradient_sizes[] = {1, 3, 7, 8, 9, 15, 16, 17, 33};

/// What a backward pass says of L = Σ c ⊙ layer(x), for a c drawn at random.
template <class Layer>
struct Gradients {
  using Scalar = typename Layer::Scalar;
  Layer of_parameters;
  Matrix<Scalar> of_x;
};

/// @param gradients  what is there before
template <class Layer, class Scalar = typename Layer::Scalar>
Gradients<Layer> gradients_after(Gradients<Layer> gradients, const Layer& layer, const Matrix<Scalar>& x,
                                 const Matrix<Scalar>& c, ExecutorRef executor = Serial{},
                                 const SideInputs<Scalar>& side = {}) {
  auto tape = tape_of(layer);
  tape.workspace().side = side;
  Matrix<Scalar> y(x.rows(), x.cols());
  forward(layer, x, y, tape, executor);
  backward(layer, x, c, tape, gradients.of_x, gradients.of_parameters, executor);
  return gradients;
}

template <class Layer, class Scalar = typename Layer::Scalar>
Gradients<Layer> gradients_of(const Layer& layer, const Matrix<Scalar>& x, const Matrix<Scalar>& c,
                              ExecutorRef executor = Serial{}, const SideInputs<Scalar>& side = {}) {
  return gradients_after<Layer>({zeros_like(layer), Matrix<Scalar>::Zero(x.rows(), x.cols())}, layer, x, c, executor,
                                side);
}

/// `sum` is what was there before, x for d_x and the values of the parameters for their gradients, and these gradients.
template <class Part>
void expect_sum(Gradients<Part> sum, Gradients<Part> gradients, Part before, const Matrix<typename Part::Scalar>& x) {
  EXPECT_TRUE(test::is_close(sum.of_x, (x + gradients.of_x).eval())) << "d_x";
  const auto sums = parameters(sum.of_parameters), values = parameters(before),
             slopes = parameters(gradients.of_parameters);
  for (std::size_t p = 0; p < sums.size(); ++p) {
    EXPECT_TRUE(test::is_close(sums[p].matrix(), (values[p].matrix() + slopes[p].matrix()).eval())) << sums[p].name;
  }
}

/// The backward pass of an expert adds to d_x and to the gradient, whatever is there.
template <class E>
void expect_an_expert_to_add_its_gradients(const E& expert, Index num_tokens, unsigned seed) {
  using Scalar = typename E::Scalar;
  const auto x = test::random_matrix<Matrix<Scalar>>(expert.d_model(), num_tokens, seed);
  const auto d_y = test::random_matrix<Matrix<Scalar>>(expert.d_model(), num_tokens, seed + 1);
  const auto after = [&](Gradients<E> gradients) {
    Scratch scratch;
    backward(expert, x, d_y, gradients.of_x, gradients.of_parameters, scratch);
    return gradients;
  };
  expect_sum<E>(after({expert, x}), after({zeros_like(expert), Matrix<Scalar>::Zero(x.rows(), x.cols())}), expert, x);
}

/// Every gradient of a layer agrees with central differences, at up to `most` numbers of each parameter and of x; and
/// all are added to what is there.
template <class Layer>
void expect_true_gradients(Layer layer, Index num_tokens, unsigned seed, Index most = 40,
                           const SideInputs<double>& side = {}) {
  static_assert(std::is_same_v<typename Layer::Scalar, double>, "differences need double");
  Matrix<double> x = test::random_matrix<Matrix<double>>(layer.d_model(), num_tokens, seed);
  const Matrix<double> c = test::random_matrix<Matrix<double>>(layer.d_model(), num_tokens, seed + 1);
  auto gradients = gradients_of(layer, x, c, Serial{}, side);
  Matrix<double> y(x.rows(), x.cols());
  const auto loss = [&] {
    auto tape = tape_of(layer);
    tape.workspace().side = side;
    forward(layer, x, y, tape, Serial{});
    return y.cwiseProduct(c).sum();
  };

  const auto check = [&](const std::string& name, double* numbers, const double* gradient, Index size) {
    const Index stride = std::max<Index>(1, size / most);
    for (Index i = 0; i < size; i += stride) {
      constexpr double h = 1e-5;
      const double was = numbers[i];
      numbers[i] = was + h;
      const double above = loss();
      numbers[i] = was - h;
      const double below = loss();
      numbers[i] = was;
      const double expected = (above - below) / (2 * h);
      EXPECT_NEAR(gradient[i], expected, 1e-7 * (1 + std::abs(expected))) << name << '[' << i << "] of " << size;
    }
  };
  const auto values = parameters(layer), slopes = parameters(gradients.of_parameters);
  ASSERT_EQ(values.size(), slopes.size());
  for (std::size_t p = 0; p < values.size(); ++p) {
    ASSERT_EQ(values[p].name, slopes[p].name);
    check(values[p].name, values[p].data, slopes[p].data, values[p].size());
  }
  check("x", x.data(), gradients.of_x.data(), x.size());
  expect_sum<Layer>(gradients_after<Layer>({layer, x}, layer, x, c, Serial{}, side), gradients, layer, x);
}

/// Forward and backward passes give the same bits on any number of threads.
template <class Layer>
void expect_the_same_bits_for_any_number_of_threads(const Layer& layer, const SideInputs<float>& side = {}) {
  const Index d = layer.d_model();
  const auto x = test::random_matrix<Matrix<float>>(d, 70, 32), c = test::random_matrix<Matrix<float>>(d, 70, 33);
  auto alone = gradients_of(layer, x, c, Serial{}, side);
  for (const Index threads : {2, 3, 7}) {
    test::OwnThreads pool{threads};
    auto together = gradients_of(layer, x, c, pool, side);
    EXPECT_TRUE(test::same_bits(together.of_x, alone.of_x)) << threads;
    const auto expected = parameters(alone.of_parameters), got = parameters(together.of_parameters);
    for (std::size_t p = 0; p < expected.size(); ++p) {
      EXPECT_TRUE(test::same_bits(got[p].matrix(), expected[p].matrix())) << got[p].name << ", " << threads;
    }
  }
}

/// Once warm, forward and backward passes allocate nothing.
template <class Layer>
void expect_warm_steps_to_allocate_nothing(const Layer& layer, const SideInputs<float>& side = {}) {
  auto gradient = zeros_like(layer);
  auto tape = tape_of(layer);
  tape.workspace().side = side;
  const Index d = layer.d_model();
  const auto x = test::random_matrix<Matrix<float>>(d, 70, 56), d_y = test::random_matrix<Matrix<float>>(d, 70, 57);
  Matrix<float> y(d, 70), d_x = Matrix<float>::Zero(d, 70);
  const auto step = [&] {
    forward(layer, x, y, tape, Serial{});
    backward(layer, x, d_y, tape, d_x, gradient, Serial{});
  };
  step();
  step();
  EXPECT_EQ(test::allocations_in(step), 0);
}

}  // namespace moe::laws
