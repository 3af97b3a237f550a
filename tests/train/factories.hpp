/// @file  Parts of layers that learn, drawn at random.
#pragma once

#include <utility>
#include <vector>

#include "moe/moe.hpp"
#include "random.hpp"

namespace moe::test {

template <class Scalar = double, class Act = SwiGlu>
FfnBank<Scalar, Act> random_bank(Index experts, Index d_model, Index d_ff, unsigned seed, bool biases = false,
                                 double scale = 1, Act act = {}) {
  constexpr bool is_gated = FfnBank<Scalar, Act>::is_gated;
  Random random(seed);
  WeightStack<Scalar> gate(is_gated ? experts : 0, d_ff, d_model), up(experts, d_ff, d_model),
      down(experts, d_model, d_ff);
  for (Index e = 0; e < experts; ++e) {
    if (is_gated) gate.owned(e) = random.matrix<Weight<Scalar>>(d_ff, d_model, scale);
    up.owned(e) = random.matrix<Weight<Scalar>>(d_ff, d_model, scale);
    down.owned(e) = random.matrix<Weight<Scalar>>(d_model, d_ff, scale);
  }
  FfnBiases<Scalar> its;
  if (biases) {
    if (is_gated) its.gate = random.matrix<Matrix<Scalar>>(d_ff, experts);
    its.up = random.matrix<Matrix<Scalar>>(d_ff, experts);
    its.down = random.matrix<Matrix<Scalar>>(d_model, experts);
  }
  return FfnBank<Scalar, Act>::of(std::move(gate), std::move(up), std::move(down), act, std::move(its));
}

template <class Scalar = double>
LinearTopK<Scalar> random_router(Index experts, Index d_model, const TopKOptions& options, unsigned seed,
                                 bool bias = false, bool selection_bias = false) {
  using Vector = typename LinearTopK<Scalar>::Vector;
  Random random(seed);
  auto weight = random.matrix<Weight<Scalar>>(experts, d_model);
  auto its_bias = bias ? Vector(random.matrix<Vector>(experts, 1)) : Vector();
  auto its_selection_bias = selection_bias ? Vector(random.matrix<Vector>(experts, 1, 0.1)) : Vector();
  return {std::move(weight), options, std::move(its_bias), std::move(its_selection_bias)};
}

template <class Act>
std::vector<Ffn<double, Act>> random_ffns(Index experts, Index d_model, Index d_ff, bool biases, unsigned seed) {
  Random random(seed);
  std::vector<Ffn<double, Act>> all;
  for (Index e = 0; e < experts; ++e) {
    auto w_in = random.matrix<Weight<double>>(d_ff, d_model), w_out = random.matrix<Weight<double>>(d_model, d_ff);
    all.push_back({.w_in = std::move(w_in), .w_out = std::move(w_out)});
    if (!biases) continue;
    all.back().b_in = random.matrix<Eigen::VectorXd>(d_ff, 1);
    all.back().b_out = random.matrix<Eigen::VectorXd>(d_model, 1);
  }
  return all;
}

template <class Scalar>
auto random_soft_moe(Index d_model, Index experts, Index slots_per_expert, const SoftMoeOptions& options, bool gains,
                     unsigned seed) {
  using Vector = Eigen::Matrix<Scalar, Eigen::Dynamic, 1>;
  Random random(seed);
  auto slots = random.matrix<Weight<Scalar>>(experts * slots_per_expert, d_model);
  auto token_gain = random.matrix<Vector>(gains ? d_model : 0, 1), slot_gain = token_gain;
  slot_gain *= 2;
  return SoftMoe(std::move(slots), random_bank<Scalar>(experts, d_model, 5, seed + 1), options, std::move(token_gain),
                 std::move(slot_gain));
}

template <class Layer, class Scalar = typename Layer::Scalar>
auto residual_moe_of(const Layer& layer, unsigned seed) {
  return ResidualMoe(layer, random_bank<Scalar>(1, layer.d_model(), 33, seed),
                     random_matrix<Weight<Scalar>>(2, layer.d_model(), seed + 1));
}

inline auto joined_experts(Index d_model, unsigned seed) {
  return JoinedExperts(random_bank<float>(3, d_model, 33, seed), ExpertList(std::vector{CopyExpert<float>{d_model}}),
                       random_bank<float>(2, d_model, 5, seed + 1));
}

template <class Scalar = double>
Weight<Scalar> random_rows(Index rows, Index cols, unsigned seed) {
  return random_matrix<Weight<Scalar>>(rows, cols, seed);
}

template <class Scalar = double>
auto random_vector(Index size, unsigned seed) {
  return random_matrix<Eigen::Matrix<Scalar, Eigen::Dynamic, 1>>(size, 1, seed);
}

/// The router in front of experts of its number and width.
template <class Router, class Scalar = typename Router::Scalar>
auto layer_of(Router router) {
  auto experts = moe::random_bank<Scalar>(router.num_experts(), router.d_model(), 5, 99);
  return MoeLayer(std::move(router), std::move(experts));
}

}  // namespace moe::test
