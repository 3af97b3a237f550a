/// @file  What the tests of training on many ranks use.
#pragma once

#include <iterator>
#include <map>
#include <string>

#include "moe/core/parameters.hpp"
#include "moe/core/tokens.hpp"
#include "moe/core/types.hpp"
#include "moe/runtime/executors/serial.hpp"
#include "moe/train.hpp"
#include "moe/train/distributed/expert_parallel.hpp"
#include "moe/train/parameter_pieces.hpp"

namespace moe::test {

/// What a layer makes of L = Σ d_y ⊙ y, where no token sees another.
template <class Layer>
struct Learnt {
  using Scalar = typename Layer::Scalar;
  Layer gradient;
  Matrix<Scalar> y, d_x;
  Matrix<Scalar> d_weight;  // (1 × routes)
};

template <class Layer, class Scalar = typename Layer::Scalar>
Learnt<Layer> learn(const Layer& layer, const Matrix<Scalar>& x, const Matrix<Scalar>& d_y,
                    ExecutorRef executor = Serial{}, distributed::Copies copies = distributed::Copies::first,
                    const SideInputs<Scalar>& side = {}) {
  auto tape = tape_of(layer);
  tape.workspace().numerics.batch_invariant = true;
  tape.workspace().side = side;
  if constexpr (requires { tape.experts.copies; }) tape.experts.copies = copies;
  Learnt<Layer> learnt{
      zeros_like(layer), Matrix<Scalar>(x.rows(), x.cols()), Matrix<Scalar>::Zero(x.rows(), x.cols()), {}};
  forward(layer, x, learnt.y, tape, executor);
  backward(layer, x, d_y, tape, learnt.d_x, learnt.gradient, executor);
  if constexpr (requires {
                  tape.d_weight;
                  tape.experts;
                }) {
    learnt.d_weight = Eigen::Map<Matrix<Scalar>>(tape.d_weight.data(), 1, std::ssize(tape.d_weight));
  }
  return learnt;
}

template <class Scalar>
using Named = std::map<std::string, Matrix<Scalar>>;

/// By name, to be looked up.
template <class Layer>
auto named(Layer& layer) {
  Named<typename Layer::Scalar> found;
  for (const auto& parameter : parameters(layer)) found[parameter.name] = parameter.matrix();
  return found;
}

}  // namespace moe::test
