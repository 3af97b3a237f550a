/// @file  What a backward pass must be: the derivative of the forward pass, for every number that it depends on.
#pragma once

#include "allocations.hpp"  // before Eigen

#include <algorithm>
#include <cmath>
#include <functional>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "compare.hpp"
#include "moe/core/parameters.hpp"
#include "moe/core/scratch.hpp"
#include "moe/core/tokens.hpp"
#include "moe/core/types.hpp"
#include "moe/runtime/executors/serial.hpp"
#include "moe/runtime/workspace.hpp"
#include "moe/train/parameter_pieces.hpp"
#include "moe/train/trainable_layer.hpp"
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

/// expect_true_gradients(), compiled once for all layers.
template <class Scalar>
void expect_true_gradients_of(TrainableLayer<Scalar> layer, Index num_tokens, unsigned seed, Index most,
                              const SideInputs<Scalar>& side) {
  static_assert(std::is_same_v<Scalar, double>, "differences need double");
  Matrix<double> x = test::random_matrix<Matrix<double>>(layer.d_model(), num_tokens, seed);
  const Matrix<double> c = test::random_matrix<Matrix<double>>(layer.d_model(), num_tokens, seed + 1);
  Matrix<double> y(x.rows(), x.cols()), of_x = Matrix<double>::Zero(x.rows(), x.cols());
  layer.workspace().side = side;
  layer.forward(x, y);
  layer.backward(x, c, of_x);
  const auto loss = [&] {
    layer.forward(x, y);
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
  const auto& values = layer.parameters();
  const auto& slopes = layer.gradients();
  ASSERT_EQ(values.size(), slopes.size());
  for (std::size_t p = 0; p < values.size(); ++p) {
    ASSERT_EQ(values[p].name, slopes[p].name);
    check(values[p].name, values[p].data, slopes[p].data, values[p].size());
  }
  check("x", x.data(), of_x.data(), x.size());

  std::vector<Weight<double>> alone;
  for (std::size_t p = 0; p < slopes.size(); ++p) {
    alone.push_back(slopes[p].matrix());
    slopes[p].matrix() = values[p].matrix();
  }
  Matrix<double> sum = x;
  layer.forward(x, y);
  layer.backward(x, c, sum);
  EXPECT_TRUE(test::is_close(sum, (x + of_x).eval())) << "d_x";
  for (std::size_t p = 0; p < slopes.size(); ++p) {
    EXPECT_TRUE(test::is_close(slopes[p].matrix(), (values[p].matrix() + alone[p]).eval())) << slopes[p].name;
  }
}

/// Every gradient of a layer agrees with central differences, at up to `most` numbers of each parameter and of x; and
/// all are added to what is there.
template <class Layer>
void expect_true_gradients(Layer layer, Index num_tokens, unsigned seed, Index most = 40,
                           const SideInputs<double>& side = {}) {
  expect_true_gradients_of(TrainableLayer<typename Layer::Scalar>(std::move(layer)), num_tokens, seed, most, side);
}

/// expect_the_same_bits_for_any_number_of_threads(), compiled once for all layers.
/// @param make  makes the same layer each time
template <class Scalar>
void expect_the_same_bits_of(const std::function<TrainableLayer<Scalar>()>& make, const SideInputs<Scalar>& side) {
  auto alone = make();
  const Index d = alone.d_model();
  const auto x = test::random_matrix<Matrix<Scalar>>(d, 70, 32), c = test::random_matrix<Matrix<Scalar>>(d, 70, 33);
  const auto step = [&](TrainableLayer<Scalar>& layer, ExecutorRef executor) {
    Matrix<Scalar> y(d, 70), of_x = Matrix<Scalar>::Zero(d, 70);
    layer.workspace().side = side;
    layer.forward(x, y, executor);
    layer.backward(x, c, of_x, executor);
    return of_x;
  };
  const auto of_x = step(alone, Serial{});
  for (const Index threads : {2, 3, 7}) {
    auto together = make();
    EXPECT_TRUE(test::same_bits(step(together, test::OwnThreads{threads}), of_x)) << threads;
    const auto &expected = alone.gradients(), &got = together.gradients();
    ASSERT_EQ(got.size(), expected.size());
    for (std::size_t p = 0; p < expected.size(); ++p) {
      EXPECT_TRUE(test::same_bits(got[p].matrix(), expected[p].matrix())) << got[p].name << ", " << threads;
    }
  }
}

/// Forward and backward passes give the same bits on any number of threads.
template <class Layer>
void expect_the_same_bits_for_any_number_of_threads(const Layer& layer, const SideInputs<float>& side = {}) {
  expect_the_same_bits_of<float>([&] { return TrainableLayer<float>(layer); }, side);
}

/// expect_warm_steps_to_allocate_nothing(), compiled once for all layers.
template <class Scalar>
void expect_warm_steps_of_to_allocate_nothing(TrainableLayer<Scalar> layer, const SideInputs<Scalar>& side) {
  layer.workspace().side = side;
  const Index d = layer.d_model();
  const auto x = test::random_matrix<Matrix<Scalar>>(d, 70, 56), d_y = test::random_matrix<Matrix<Scalar>>(d, 70, 57);
  Matrix<Scalar> y(d, 70), d_x = Matrix<Scalar>::Zero(d, 70);
  const auto step = [&] {
    layer.forward(x, y);
    layer.backward(x, d_y, d_x);
  };
  step();
  step();
  EXPECT_EQ(test::allocations_in(step), 0);
}

/// Once warm, forward and backward passes allocate nothing.
template <class Layer>
void expect_warm_steps_to_allocate_nothing(const Layer& layer, const SideInputs<float>& side = {}) {
  expect_warm_steps_of_to_allocate_nothing(TrainableLayer<float>(layer), side);
}

#ifdef MOE_LAWS_ARE_COMPILED
extern template void expect_true_gradients_of(TrainableLayer<double>, Index, unsigned, Index,
                                              const SideInputs<double>&);
extern template void expect_the_same_bits_of(const std::function<TrainableLayer<float>()>&, const SideInputs<float>&);
extern template void expect_warm_steps_of_to_allocate_nothing(TrainableLayer<float>, const SideInputs<float>&);
#endif

}  // namespace moe::laws
