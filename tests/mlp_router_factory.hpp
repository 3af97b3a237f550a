/// @file  Numbers of a router with hidden layers, drawn at random.
#pragma once

#include <cmath>

#include "moe/routers/mlp_top_k.hpp"
#include "random.hpp"

namespace moe::test {

/// @param hears  whether it has a scale for the state of the layer before
template <class Scalar>
MlpRouterWeights<Scalar> random_mlp_router(Index num_experts, Index d_model, Index state_size, unsigned seed,
                                           bool hears = true, bool biases = true) {
  Random random(seed);
  const auto matrix = [&](Index rows, Index cols) {
    return random.matrix<Weight<Scalar>>(rows, cols, 2 / std::sqrt(double(cols)));
  };
  const auto vector = [&](bool is_there) { return random.matrix<Vector<Scalar>>(is_there ? state_size : 0, 1); };
  MlpRouterWeights<Scalar> weights;
  weights.down = matrix(state_size, d_model);
  weights.down_bias = vector(biases);
  weights.state_scale = vector(hears);
  weights.norm_scale = vector(true);
  weights.fc1 = matrix(state_size, state_size);
  weights.fc1_bias = vector(biases);
  weights.fc2 = matrix(state_size, state_size);
  weights.fc2_bias = vector(biases);
  weights.out = matrix(num_experts, state_size);
  return weights;
}

}  // namespace moe::test
