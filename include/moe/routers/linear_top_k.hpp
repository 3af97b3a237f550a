/// @file  The router of most published models: a linear layer whose best scores choose the experts.
#pragma once

#include <utility>

#include "moe/core/check.hpp"
#include "moe/core/routing.hpp"
#include "moe/core/types.hpp"
#include "moe/routers/detail/logits.hpp"
#include "moe/routers/top_k.hpp"
#include "moe/runtime/workers.hpp"

namespace moe::inline MOE_TARGET {

/// logits = W·x + bias, in Scalar; then TopKChoice. Mixtral, Qwen, DeepSeek, Llama 4, gpt-oss and many others: see
/// TopKOptions for how they differ.
template <class Scalar_>
class LinearTopK {
 public:
  using Scalar = Scalar_;
  using Vector = Eigen::Matrix<Scalar, Eigen::Dynamic, 1>;

  /// @param weight          (num_experts × d_model): row e scores expert e
  /// @param bias            (num_experts) added to the logits, or empty
  /// @param selection_bias  (num_experts) added to the scores when choosing, not when weighting; or empty
  /// @throws std::invalid_argument unless the sizes fit, num_groups divides num_experts, and the kept groups hold
  /// top_k.
  LinearTopK(Weight<Scalar> weight, const TopKOptions& options, Vector bias = {}, Vector selection_bias = {})
      : weight_(std::move(weight)),
        bias_(std::move(bias)),
        choice_(weight_.rows(), options, std::move(selection_bias), "LinearTopK") {
    if (bias_.size() > 0) require_equal(bias_.size(), num_experts(), "LinearTopK: bias.size()");
  }

  Index d_model() const { return weight_.cols(); }
  Index num_experts() const { return weight_.rows(); }
  Index top_k() const { return choice_.top_k(); }
  const TopKOptions& options() const { return choice_.options(); }
  const Weight<Scalar>& weight() const { return weight_; }
  const Vector& bias() const { return bias_; }
  const Vector& selection_bias() const { return choice_.selection_bias(); }
  const TopKChoice<Scalar>& choice() const { return choice_; }

  /// To write.
  Eigen::Map<Weight<Scalar>> weight() { return {weight_.data(), weight_.rows(), weight_.cols()}; }
  Eigen::Map<Vector> bias() { return {bias_.data(), bias_.size()}; }
  Eigen::Map<Vector> selection_bias() { return choice_.selection_bias(); }

  void route(const ConstMatrixRef<Scalar>& x, Routing<Scalar>& routing, Workers& workers) const {
    choice_.route(linear_logits(weight_, bias_, x, routing, workers), routing, workers);
  }

  /// The selection bias is not learnt by gradients: losses/bias_update.hpp.
  template <class Visit>
  void visit_parameters(Visit& visit) {
    visit("weight", weight_);
    visit("bias", bias_);
  }

 private:
  Weight<Scalar> weight_;
  Vector bias_;
  TopKChoice<Scalar> choice_;
};

}  // namespace moe::inline MOE_TARGET
