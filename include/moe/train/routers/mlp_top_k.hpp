/// @file  Gradients of the router with hidden layers.
#pragma once

#include <algorithm>
#include <iterator>
#include <utility>

#include "moe/core/check.hpp"
#include "moe/core/tokens.hpp"
#include "moe/core/types.hpp"
#include "moe/experts/activation.hpp"
#include "moe/kernels/vectors.hpp"
#include "moe/routers/mlp_top_k.hpp"
#include "moe/runtime/workers.hpp"
#include "moe/train/experts/activation.hpp"
#include "moe/train/gradient_shape.hpp"
#include "moe/train/kernels/add_product.hpp"
#include "moe/train/no_gradient.hpp"
#include "moe/train/routers/linear_logits.hpp"
#include "moe/train/routers/logits_router.hpp"

namespace moe::inline MOE_TARGET {

namespace detail {

/// Through y = gelu(x):  ∂L/∂x = gelu'(x) ⊙ ∂L/∂y, in place.
template <class Scalar>
void gelu_backward(const ConstMatrixRef<Scalar>& x, MatrixRef<Scalar> d, Workers& workers) {
  using Part = Eigen::Array<Scalar, 16, 1>;
  workers.for_each_band(x.cols(), 16, [&](Index begin, Index end, Scratch&) {
    for (Index t = begin; t < end; ++t) {
      for (Index first = 0; first < x.rows(); first += Part::SizeAtCompileTime) {
        const Index filled = std::min<Index>(Part::SizeAtCompileTime, x.rows() - first);
        Part part = Part::Zero();
        part.head(filled) = x.col(t).segment(first, filled);
        part = slope(Gelu(), part);
        d.col(t).segment(first, filled).array() *= part.head(filled);
      }
    }
  });
}

/// Where the gradient of an MlpLogits goes: nowhere, of one that does not learn.
template <class Scalar, class Gradient>
auto numbers_to_add_to(Gradient& gradient) {
  using Numbers = decltype(std::declval<MlpLogits<Scalar>&>().weights());
  if constexpr (learns<Gradient>) {
    return gradient.weights();
  } else {
    using Matrix = Eigen::Map<Weight<Scalar>>;
    using Column = Eigen::Map<Vector<Scalar>>;
    const Matrix none(nullptr, 0, 0);
    const Column empty(nullptr, 0);
    return Numbers{none, empty, empty, empty, none, empty, none, empty, none};
  }
}

}  // namespace detail

/// As backward() of LinearLogits, for the same state of the layer before. That one learns too, and so does this layer
/// of what the next one made of its state: SideInputs::state_gradient and carried_backward(). The state and what
/// follows it is computed anew.
template <class Scalar, class Gradient>
void backward(const MlpLogits<Scalar>& mlp, const Tokens<Scalar>& tokens, const ConstMatrixRef<Scalar>&,
              const ConstMatrixRef<Scalar>& d_logits, MatrixRef<Scalar> d_x, Gradient& gradient, Workers& workers) {
  const auto& w = mlp.weights();
  auto d = detail::numbers_to_add_to<Scalar>(gradient);
  const Index size = mlp.state_size(), n = tokens.count();
  const auto zeros = [&] {
    auto made = workers.shared().template matrix<Scalar>(size, n);
    made.setZero();
    return made;
  };
  auto state = zeros();
  mlp.compute_state(tokens, state, workers);
  const auto hidden = mlp.hidden_layers(state, workers);

  auto d_2 = zeros(), d_1 = zeros(), d_normed = zeros(), own_d_state = zeros();
  linear_backward<Scalar>(map_of(w.out), hidden.after_2, d_logits, d_2, d.out, {nullptr, 0}, workers);
  detail::gelu_backward<Scalar>(hidden.before_2, d_2, workers);
  linear_backward<Scalar>(map_of(w.fc2), hidden.after_1, d_2, d_1, d.fc2, d.fc2_bias, workers);
  detail::gelu_backward<Scalar>(hidden.before_1, d_1, workers);
  linear_backward<Scalar>(map_of(w.fc1), hidden.normed, d_1, d_normed, d.fc1, d.fc1_bias, workers);

  const auto given = tokens.side.state_gradient;
  if (!given.empty()) require_equal(std::ssize(given), size * n, "backward: side.state_gradient.size()");
  Eigen::Map<Matrix<Scalar>> d_state(given.empty() ? own_d_state.data() : given.data(), size, n);
  // With r = √(mean(state²) + norm_epsilon) and a = γ ⊙ ∂L/∂x̂:  a/r − state (state·a) / (state_size r³), and for γ
  // Σ ∂L/∂x̂ ⊙ state/r.
  workers.for_each_band(n, 16, [&](Index first, Index last, Scratch& scratch) {
    Eigen::Map<Vector<Scalar>> a(scratch.array<Scalar>(size), size);
    for (Index t = first; t < last; ++t) {
      const Scalar r = mlp.divisor(state.col(t));
      a = d_normed.col(t).cwiseProduct(w.norm_scale);
      d_normed.col(t) = d_normed.col(t).cwiseProduct(state.col(t)) / r;
      const Scalar along = kernels::dot(state.col(t), a) / (Scalar(size) * r * r * r);
      a /= r;
      kernels::add_scaled(-along, state.col(t), a);
      d_state.col(t) += a;
    }
  });
  if (d.norm_scale.size() > 0) {
    require_gradient(d.norm_scale, w.norm_scale, "norm_scale");
    kernels::add_columns(d_normed, d.norm_scale);
  }

  linear_backward<Scalar>(map_of(w.down), tokens.x, d_state, d_x, d.down, d.down_bias, workers);
  const auto previous = mlp.previous_state(tokens);
  for (Index t = 0; t < (d.state_scale.size() > 0 ? previous.cols() : 0); ++t) {
    kernels::add_scaled(previous.col(t), d_state.col(t), d.state_scale);
  }
}

/// From a layer's state to the one that it heard: after backward() of the layer, and before that of the one before it.
/// Nothing is added by a layer without a state_scale.
/// @param mlp         the logits() of the layer's router
/// @param d_state     (state_size × n_tokens) SideInputs::state_gradient of that backward()
/// @param d_previous  (state_size × n_tokens) SideInputs::state_gradient for that of the layer before; added to
/// @throws std::invalid_argument if a shape differs.
template <class Scalar>
void carried_backward(const MlpLogits<Scalar>& mlp, const ConstMatrixRef<Scalar>& d_state, MatrixRef<Scalar> d_previous,
                      Workers&) {
  require_equal(d_state.rows(), mlp.state_size(), "carried_backward: d_state.rows()");
  require_equal(d_previous.rows(), mlp.state_size(), "carried_backward: d_previous.rows()");
  require_equal(d_previous.cols(), d_state.cols(), "carried_backward: d_previous.cols()");
  if (mlp.weights().state_scale.size() == 0) return;
  for (Index t = 0; t < d_state.cols(); ++t) {
    kernels::add_scaled(mlp.weights().state_scale, d_state.col(t), d_previous.col(t));
  }
}

}  // namespace moe::inline MOE_TARGET
