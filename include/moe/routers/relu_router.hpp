/// @file  The router without a choice: who has a positive logit takes part.
#pragma once

#include <algorithm>
#include <cmath>
#include <utility>

#include "moe/core/check.hpp"
#include "moe/core/routing.hpp"
#include "moe/core/types.hpp"
#include "moe/routers/detail/logits.hpp"
#include "moe/routers/detail/varying_routes.hpp"
#include "moe/runtime/workers.hpp"

namespace moe::inline MOE_TARGET {

/// weights = ReLU(W·x + bias): a route for each that is positive. So a token may have no route, and many. Best first;
/// of ties the lower index first. A NaN logit is a route of weight NaN, after all others.
/// Wang et al. 2024, "ReMoE", arXiv:2412.14711.
template <class Scalar_>
class ReluRouter {
 public:
  using Scalar = Scalar_;
  using Vector = Eigen::Matrix<Scalar, Eigen::Dynamic, 1>;

  /// @param weight  (num_experts × d_model): row e scores expert e
  /// @param bias    (num_experts) added to the logits, or empty
  /// @throws std::invalid_argument unless there is an expert and the sizes fit.
  explicit ReluRouter(Weight<Scalar> weight, Vector bias = {}) : weight_(std::move(weight)), bias_(std::move(bias)) {
    require(num_experts() >= 1, "ReluRouter: needs at least one expert");
    if (bias_.size() > 0) require_equal(bias_.size(), num_experts(), "ReluRouter: bias.size()");
  }

  Index d_model() const { return weight_.cols(); }
  Index num_experts() const { return weight_.rows(); }
  const Weight<Scalar>& weight() const { return weight_; }
  const Vector& bias() const { return bias_; }

  /// To write.
  Eigen::Map<Weight<Scalar>> weight() { return {weight_.data(), weight_.rows(), weight_.cols()}; }
  Eigen::Map<Vector> bias() { return {bias_.data(), bias_.size()}; }

  void route(const ConstMatrixRef<Scalar>& x, Routing<Scalar>& routing, Workers& workers) const {
    const auto logits = linear_logits(weight_, bias_, x, routing, workers);
    route_varying(x.cols(), num_experts(), routing, workers, [&](Scratch&) {
      return [&](Index t, Index* expert, Scalar* weight) { return choose(logits.col(t), expert, weight); };
    });
  }

  template <class Visit>
  void visit_parameters(Visit& visit) {
    visit("weight", weight_);
    visit("bias", bias_);
  }

 private:
  template <class Logits>
  static Index choose(const Logits& logits, Index* expert, Scalar* weight) {
    Index count = 0;
    for (Index e = 0; e < logits.size(); ++e) {
      if (logits(e) > 0) expert[count++] = e;
    }
    const Index numbers = count;  // behind them, what is not a number
    for (Index e = 0; e < logits.size(); ++e) {
      if (std::isnan(logits(e))) expert[count++] = e;
    }
    std::sort(expert, expert + numbers,
              [&](Index a, Index b) { return logits(a) != logits(b) ? logits(a) > logits(b) : a < b; });
    for (Index k = 0; k < count; ++k) weight[k] = logits(expert[k]);
    return count;
  }

  Weight<Scalar> weight_;
  Vector bias_;
};

}  // namespace moe::inline MOE_TARGET
