/// @file  A sparse layer blended with an expert that every token sees.
#pragma once

#include <concepts>
#include <cstddef>
#include <span>
#include <utility>

#include "moe/core/check.hpp"
#include "moe/core/concepts.hpp"
#include "moe/core/contracts.hpp"
#include "moe/core/dispatch.hpp"
#include "moe/core/types.hpp"
#include "moe/kernels/scores.hpp"
#include "moe/kernels/vectors.hpp"
#include "moe/layers/expert_beside.hpp"
#include "moe/runtime/executors/serial.hpp"
#include "moe/runtime/padding.hpp"
#include "moe/runtime/workers.hpp"
#include "moe/runtime/workspace.hpp"

namespace moe::inline MOE_TARGET {

/// y = c_0 · layer(x) + c_1 · shared(x), where c = softmax(W · x + b) for each token.
/// Residual-MoE: Rajbhandari et al. 2022, "DeepSpeed-MoE", §4.1, arXiv:2201.05596, with the learned coefficients of its
/// released code; Klear.
template <class Layer, class G>
class ResidualMoe : public ShortForwards<ResidualMoe<Layer, G>> {
  static_assert(is_group_of_experts<G>() && are_of_one_scalar<Layer, G>());

 public:
  using Scalar = typename G::Scalar;
  using Vector = Eigen::Matrix<Scalar, Eigen::Dynamic, 1>;

  /// @param shared  a group of one expert
  /// @param weight  (2 × d_model): row 0 speaks for the layer, row 1 for the shared expert
  /// @param bias    (2), or empty for none
  /// @throws std::invalid_argument if a size differs, or `shared` does not hold exactly one expert.
  ResidualMoe(Layer layer, G shared, Weight<Scalar> weight, Vector bias = {})
      : layer_(std::move(layer)), shared_(std::move(shared)), weight_(std::move(weight)), bias_(std::move(bias)) {
    require_equal(shared_.num_experts(), 1, "ResidualMoe: shared.num_experts()");
    require_equal(shared_.d_model(), layer_.d_model(), "ResidualMoe: shared.d_model()");
    require_equal(weight_.rows(), 2, "ResidualMoe: weight.rows()");
    require_equal(weight_.cols(), layer_.d_model(), "ResidualMoe: weight.cols()");
    if (bias_.size() > 0) require_equal(bias_.size(), 2, "ResidualMoe: bias.size()");
  }

  Index d_model() const { return layer_.d_model(); }
  const Layer& layer() const { return layer_; }
  const G& shared() const { return shared_; }
  const Weight<Scalar>& weight() const { return weight_; }
  const Vector& bias() const { return bias_; }

  /// To write.
  Layer& layer() { return layer_; }
  G& shared() { return shared_; }
  Eigen::Map<Weight<Scalar>> weight() { return {weight_.data(), weight_.rows(), weight_.cols()}; }
  Eigen::Map<Vector> bias() { return {bias_.data(), bias_.size()}; }

  /// x and y (d_model × n_tokens), not overlapping. `ws.routing` tells of the sparse layer; `ws.shared_plan.weight` is
  /// c_1 of each token.
  /// @throws std::invalid_argument if a shape is wrong or y overlaps x.
  void forward(const ConstMatrixRef<Scalar>& x, MatrixRef<Scalar> y, Workspace<Scalar>& ws,
               ExecutorRef executor = Serial{}) const {
    if (is_padded(ws)) return forward_real_tokens(*this, x, y, ws, executor);
    detail::forward_beside<Scalar>(
        x, y, ws, ws.shared_plan, executor, Mode::infer, [&] { layer_.forward(x, y, ws, executor); },
        [&](const auto& plan, MatrixRef<Scalar> to, Workers& workers) { shared_.apply(x, plan, to, workers); },
        [&](MatrixRef<Scalar> answer, std::span<Scalar> weight, Workers& workers) {
          weigh(x, answer, weight, workers);
        });
  }
  using ShortForwards<ResidualMoe>::forward;

  /// Under the names of DeepSpeed.
  template <class Visit>
  void visit_parameters(Visit& visit) {
    visit.in("", layer_);
    visit.in_only("mlp", shared_);
    visit("coefficient.weight", weight_);
    visit("coefficient.bias", bias_);
  }

  /// answer.col(t) *= c_0 and weight[t] = c_1 of x.col(t).
  void weigh(const ConstMatrixRef<Scalar>& x, MatrixRef<Scalar> answer, std::span<Scalar> weight,
             Workers& workers) const {
    require_equal(weight_.cols(), x.rows(), "ResidualMoe: weight.cols()");
    workers.for_each_band(x.cols(), 1, [&](Index first, Index last, Scratch&) {
      for (Index t = first; t < last; ++t) {
        const auto c = coefficients(x.col(t));
        answer.col(t) *= c(0);
        weight[std::size_t(t)] = c(1);
      }
    });
  }

  /// (c_0, c_1) of a token.
  template <class Token>
  Eigen::Matrix<Scalar, 2, 1> coefficients(const Token& token) const {
    Eigen::Matrix<Scalar, 2, 1> c(kernels::dot(weight_.row(0), token), kernels::dot(weight_.row(1), token));
    if (bias_.size() > 0) c += bias_;
    softmax(c, c);
    return c;
  }

 private:
  Layer layer_;
  G shared_;
  Weight<Scalar> weight_;
  Vector bias_;
};

}  // namespace moe::inline MOE_TARGET
