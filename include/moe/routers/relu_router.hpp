/// @file  The router without a choice: who has a positive logit takes part.
#pragma once

#include <algorithm>
#include <cmath>
#include <utility>

#include "moe/core/routing.hpp"
#include "moe/core/types.hpp"
#include "moe/routers/detail/best_k.hpp"
#include "moe/routers/detail/varying_routes.hpp"
#include "moe/routers/linear_logits.hpp"
#include "moe/routers/logits_router.hpp"
#include "moe/runtime/workers.hpp"

namespace moe::inline MOE_TARGET {

/// weights = ReLU(logits): a route for each that is positive. So a token may have no route, and many. Best first; of
/// ties the lower index first. A NaN logit is a route of weight NaN, after all others. Wang et al. 2024, "ReMoE",
/// arXiv:2412.14711.
template <class Scalar_>
class ReluChoice {
 public:
  using Scalar = Scalar_;

  void route(const ConstMatrixRef<Scalar>& logits, Routing<Scalar>& routing, Workers& workers) const {
    route_varying(logits.cols(), logits.rows(), routing, workers, [&](Scratch&) {
      return [&](Index t, Index* expert, Scalar* weight) { return choose(logits.col(t), expert, weight); };
    });
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
              [&](Index a, Index b) { return ranks_before(Scalar(logits(a)), a, Scalar(logits(b)), b); });
    for (Index k = 0; k < count; ++k) weight[k] = logits(expert[k]);
    return count;
  }
};

/// logits = W·x + bias; then ReluChoice.
template <class Scalar>
class ReluRouter : public LogitsRouter<LinearLogits<Scalar>, ReluChoice<Scalar>> {
 public:
  /// @param weight  (num_experts × d_model): row e scores expert e
  /// @param bias    (num_experts) added to the logits, or empty
  /// @throws std::invalid_argument unless there is an expert and the sizes fit.
  explicit ReluRouter(Weight<Scalar> weight, Vector<Scalar> bias = {})
      : ReluRouter::LogitsRouter(LinearLogits<Scalar>(std::move(weight), std::move(bias), "ReluRouter"),
                                 ReluChoice<Scalar>()) {}
};

}  // namespace moe::inline MOE_TARGET
