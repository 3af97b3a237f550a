/// @file  The linear layer that most routers begin with.
#pragma once

#include <string>
#include <string_view>
#include <utility>

#include "moe/core/check.hpp"
#include "moe/core/tokens.hpp"
#include "moe/core/types.hpp"
#include "moe/kernels/matmul.hpp"
#include "moe/runtime/workers.hpp"

namespace moe::inline MOE_TARGET {

/// logits = W·x + bias, in Scalar.
template <class Scalar_>
class LinearLogits {
 public:
  using Scalar = Scalar_;

  /// @param weight  (num_experts × d_model): row e scores expert e
  /// @param bias    (num_experts), or empty
  /// @param who     what errors begin with
  /// @throws std::invalid_argument unless there is an expert and the sizes fit.
  explicit LinearLogits(Weight<Scalar> weight, Vector<Scalar> bias = {}, std::string_view who = "LinearLogits")
      : weight_(std::move(weight)), bias_(std::move(bias)) {
    const std::string name(who);
    require(weight_.rows() >= 1, name + ": needs at least one expert");
    if (bias_.size() > 0) require_equal(bias_.size(), weight_.rows(), name + ": bias.size()");
  }

  /// Of no expert: for a choice that can do without.
  static LinearLogits none(Index d_model) { return LinearLogits(d_model); }

  Index d_model() const { return weight_.cols(); }
  Index num_experts() const { return weight_.rows(); }
  const Weight<Scalar>& weight() const { return weight_; }
  const Vector<Scalar>& bias() const { return bias_; }
  auto weight() { return to_write(weight_); }
  auto bias() { return to_write(bias_); }

  void compute(const Tokens<Scalar>& tokens, MatrixRef<Scalar> logits, Workers& workers) const {
    kernels::matmul<Scalar, Scalar>(map_of(weight_), tokens.x, logits, workers);
    for (Index t = 0; t < (bias_.size() > 0 ? logits.cols() : 0); ++t) {
      for (Index e = 0; e < logits.rows(); ++e) logits(e, t) += bias_(e);
    }
  }

  template <class Visit>
  void visit_parameters(Visit& visit) {
    visit("weight", weight_);
    visit("bias", bias_);
  }

 private:
  explicit LinearLogits(Index d_model) : weight_(0, d_model) {}

  Weight<Scalar> weight_;
  Vector<Scalar> bias_;
};

}  // namespace moe::inline MOE_TARGET
