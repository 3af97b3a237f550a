/// @file  A router with hidden layers that hears the hidden state of the router of the layer before it.
#pragma once

#include <cmath>
#include <cstddef>
#include <iterator>
#include <string>
#include <utility>

#include "moe/core/check.hpp"
#include "moe/core/routing.hpp"
#include "moe/core/tokens.hpp"
#include "moe/core/types.hpp"
#include "moe/kernels/matmul.hpp"
#include "moe/kernels/multiply_add.hpp"
#include "moe/kernels/vectors.hpp"
#include "moe/routers/detail/gelu.hpp"
#include "moe/routers/logits_router.hpp"
#include "moe/routers/top_k.hpp"
#include "moe/runtime/workers.hpp"

namespace moe::inline MOE_TARGET {

/// What an MlpLogits has learnt. Matrix is Weight and Vector a vector, owned or mapped.
template <class Matrix_, class Vector_>
struct MlpRouterNumbers {
  Matrix_ down;         // (state_size × d_model)
  Vector_ down_bias;    // (state_size), or empty
  Vector_ state_scale;  // (state_size), or empty in a layer that hears none before it
  Vector_ norm_scale;   // γ, (state_size)
  Matrix_ fc1;          // (state_size × state_size)
  Vector_ fc1_bias;     // (state_size), or empty
  Matrix_ fc2;          // (state_size × state_size)
  Vector_ fc2_bias;     // (state_size), or empty
  Matrix_ out;          // (num_experts × state_size)
};
template <class Scalar>
using MlpRouterWeights = MlpRouterNumbers<Weight<Scalar>, Vector<Scalar>>;  ///< Where they are owned.

/// state = W_down·x + b_down + state_scale ⊙ (state of the layer before),
/// logits = W_out·gelu(W_2·gelu(W_1·x̂ + b_1) + b_2), x̂ = state / √(mean(state²) + norm_epsilon) ⊙ γ.
///
/// Reads SideInputs::previous_state; in the first layer there is none, and without a state_scale it is not read. Its
/// own state is Routing::state, for the next layer; so two layers that follow each other need a Routing each.
template <class Scalar_>
class MlpLogits {
 public:
  using Scalar = Scalar_;
  using Weights = MlpRouterWeights<Scalar>;                    ///< What it has learnt, owned.
  using State = Eigen::Map<Matrix<Scalar>, Eigen::Aligned64>;  ///< A state where it lies, (state_size × n_tokens).

  /// @param who  what errors begin with
  /// @throws std::invalid_argument unless there is an expert and a state, the sizes fit, and norm_epsilon ≥ 0.
  explicit MlpLogits(Weights weights, double norm_epsilon = 1e-6, std::string who = "MlpLogits")
      : weights_(std::move(weights)), norm_epsilon_(static_cast<Scalar>(norm_epsilon)), who_(std::move(who)) {
    const Weights& w = weights_;
    const auto require_size = [&](const Vector<Scalar>& vector, const char* name, bool may_be_empty = true) {
      if (may_be_empty && vector.size() == 0) return;
      require_equal(vector.size(), state_size(), who_ + ": " + name + ".size()");
    };
    const auto require_square = [&](const Weight<Scalar>& matrix, const std::string& name) {
      require_equal(matrix.rows(), state_size(), who_ + ": " + name + ".rows()");
      require_equal(matrix.cols(), state_size(), who_ + ": " + name + ".cols()");
    };
    require(num_experts() >= 1, who_ + ": needs at least one expert");
    require(state_size() >= 1, who_ + ": down.rows() is 0, expected 1 or more");
    require_size(w.down_bias, "down_bias");
    require_size(w.state_scale, "state_scale");
    require_size(w.norm_scale, "norm_scale", false);
    require_square(w.fc1, "fc1");
    require_size(w.fc1_bias, "fc1_bias");
    require_square(w.fc2, "fc2");
    require_size(w.fc2_bias, "fc2_bias");
    require_equal(w.out.cols(), state_size(), who_ + ": out.cols()");
    require(norm_epsilon >= 0, who_ + ": norm_epsilon is " + std::to_string(norm_epsilon) + ", expected 0 or more");
  }

  Index d_model() const { return weights_.down.cols(); }
  /// Numbers that a token's state has, for the router of the next layer.
  Index state_size() const { return weights_.down.rows(); }
  Index num_experts() const { return weights_.out.rows(); }
  Scalar norm_epsilon() const { return norm_epsilon_; }
  const Weights& weights() const { return weights_; }

  /// To write.
  auto weights() {
    Weights& w = weights_;
    return MlpRouterNumbers<decltype(to_write(w.down)), decltype(to_write(w.down_bias))>{
        to_write(w.down),     to_write(w.down_bias), to_write(w.state_scale), to_write(w.norm_scale), to_write(w.fc1),
        to_write(w.fc1_bias), to_write(w.fc2),       to_write(w.fc2_bias),    to_write(w.out)};
  }

  /// @throws std::invalid_argument if the state of the layer before is that of `routing`.
  void require_side(const SideInputs<Scalar>& side, const Routing<Scalar>& routing) const {
    if (side.previous_state.empty() || side.previous_state.data() != routing.state.data()) return;
    require(false, who_ + ": side.previous_state is that of the routing that is being written");
  }

  /// @param state  (state_size × n_tokens) written
  /// @throws std::invalid_argument if there is a state of the layer before, and it is read, but not state_size numbers
  /// for each token.
  void compute(const Tokens<Scalar>& tokens, MatrixRef<Scalar> logits, MatrixRef<Scalar> state,
               Workers& workers) const {
    compute_state(tokens, state, workers);
    kernels::matmul<Scalar, Scalar>(map_of(weights_.out), hidden_layers(state, workers).after_2, logits, workers);
  }

  /// The same with a state that nobody reads.
  void compute(const Tokens<Scalar>& tokens, MatrixRef<Scalar> logits, Workers& workers) const {
    compute(tokens, logits, workers.shared().matrix<Scalar>(state_size(), tokens.count()), workers);
  }

  /// The state of the layer before, (state_size × n_tokens), or no column where none is read.
  Eigen::Map<const Matrix<Scalar>> previous_state(const Tokens<Scalar>& tokens) const {
    const auto previous = tokens.side.previous_state;
    if (previous.empty() || weights_.state_scale.size() == 0) return {nullptr, state_size(), 0};
    const Index size = state_size() * tokens.count();
    if (std::ssize(previous) != size) require_equal(std::ssize(previous), size, who_ + ": side.previous_state.size()");
    return {previous.data(), state_size(), tokens.count()};
  }

  /// @param state  (state_size × n_tokens) written, of these tokens and the state of the layer before
  void compute_state(const Tokens<Scalar>& tokens, MatrixRef<Scalar> state, Workers& workers) const {
    const auto previous = previous_state(tokens);
    kernels::matmul<Scalar, Scalar>(map_of(weights_.down), tokens.x, state, workers);
    for (Index t = 0; t < state.cols(); ++t) {
      if (weights_.down_bias.size() > 0) state.col(t) += weights_.down_bias;
      if (previous.cols() > 0) kernels::add_scaled(weights_.state_scale, previous.col(t), state.col(t));
    }
  }

  /// What lies between the state and the logits, each (state_size × n_tokens), in memory of the workers: x̂, and what
  /// goes into and comes out of each gelu.
  struct HiddenLayers {
    State normed, before_1, after_1, before_2, after_2;
  };

  /// From a state (state_size × n_tokens) to what the logits are made of.
  HiddenLayers hidden_layers(const ConstMatrixRef<Scalar>& state, Workers& workers) const {
    const auto room = [&] { return workers.shared().matrix<Scalar>(state.rows(), state.cols()); };
    HiddenLayers all{room(), room(), room(), room(), room()};
    workers.for_each_band(state.cols(), tokens_a_task, [&](Index first, Index last, Scratch&) {
      for (Index t = first; t < last; ++t) {
        all.normed.col(t) = state.col(t).cwiseProduct(weights_.norm_scale) / divisor(state.col(t));
      }
    });
    compute_hidden(weights_.fc1, weights_.fc1_bias, all.normed, all.before_1, all.after_1, workers);
    compute_hidden(weights_.fc2, weights_.fc2_bias, all.after_1, all.before_2, all.after_2, workers);
    return all;
  }

  /// √(mean(state²) + norm_epsilon) of a token; 1 where that is 0, so that 0 stays 0.
  template <class Column>
  Scalar divisor(const Column& state) const {
    const Scalar rms = std::sqrt(kernels::dot(state, state) / static_cast<Scalar>(state_size()) + norm_epsilon_);
    return rms == 0 ? Scalar(1) : rms;
  }

  /// Under Zaya's names.
  template <class Visit>
  void visit_parameters(Visit& visit) {
    visit("down_proj.weight", weights_.down);
    visit("down_proj.bias", weights_.down_bias);
    visit("router_states_scale", weights_.state_scale);
    visit("router_mlp.norm.weight", weights_.norm_scale);
    visit("router_mlp.fc1.weight", weights_.fc1);
    visit("router_mlp.fc1.bias", weights_.fc1_bias);
    visit("router_mlp.fc2.weight", weights_.fc2);
    visit("router_mlp.fc2.bias", weights_.fc2_bias);
    visit("router_mlp.out_proj.weight", weights_.out);
  }

 private:
  static constexpr Index tokens_a_task = 16;

  void compute_hidden(const Weight<Scalar>& weight, const Vector<Scalar>& bias, const ConstMatrixRef<Scalar>& x,
                      State& before, State& after, Workers& workers) const {
    kernels::matmul<Scalar, Scalar>(map_of(weight), x, before, workers);
    workers.for_each_band(x.cols(), tokens_a_task, [&](Index first, Index last, Scratch&) {
      for (Index t = first; t < last; ++t) {
        if (bias.size() > 0) before.col(t) += bias;
        after.col(t) = detail::gelu_of(before.col(t).array());
      }
    });
  }

  Weights weights_;
  Scalar norm_epsilon_;
  std::string who_;
};

/// MlpLogits, then TopKChoice. ZAYA1, with {.top_k = 1} and a selection bias: its last logit is of a ZeroExpert, which
/// stands behind the others in JoinedExperts. Zyphra 2025, arXiv:2511.17127.
template <class Scalar>
class MlpTopK : public LogitsRouter<MlpLogits<Scalar>, TopKChoice<Scalar>> {
 public:
  /// @param selection_bias  as of TopKChoice
  /// @throws std::invalid_argument unless MlpLogits takes the weights and TopKChoice the options.
  MlpTopK(MlpRouterWeights<Scalar> weights, const TopKOptions& options, Vector<Scalar> selection_bias = {},
          double norm_epsilon = 1e-6)
      : MlpTopK::LogitsRouter(MlpLogits<Scalar>(std::move(weights), norm_epsilon, "MlpTopK"), std::in_place, options,
                              std::move(selection_bias), "MlpTopK") {}
};

}  // namespace moe::inline MOE_TARGET
