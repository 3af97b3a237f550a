/// @file  The router of BASE layers: a balanced assignment.
#pragma once

#include <cmath>
#include <cstddef>
#include <span>
#include <utility>

#include "moe/core/check.hpp"
#include "moe/core/routing.hpp"
#include "moe/core/types.hpp"
#include "moe/routers/detail/balanced_assignment.hpp"
#include "moe/routers/detail/best_k.hpp"
#include "moe/routers/linear_logits.hpp"
#include "moe/routers/logits_router.hpp"
#include "moe/runtime/workers.hpp"

namespace moe::inline MOE_TARGET {

/// How tokens are assigned.
struct BaseLayersOptions {
  bool balance = true;   // false: each token goes to its expert of largest logit, as is done when the model is used
  bool residual = true;  // 1 − α of a token goes to one more expert, which is to return its input
};

/// assign_balanced() finds each token's expert e, and
///   y = α E_e(x) + (1 − α) x,  α = σ(its logit).
/// With `residual`, (1 − α) x is a route of its own: each token's second, to one expert more than there are logits, the
/// last, which must be there and return its input. Without, y = α E_e(x).
/// The balance holds in the batch and depends on all of it. A NaN ranks last, and shows in the weight.
template <class Scalar_>
class BaseLayersChoice {
 public:
  using Scalar = Scalar_;

  explicit BaseLayersChoice(const BaseLayersOptions& options = {}) : options_(options) {}  ///< Any options fit.

  const BaseLayersOptions& options() const { return options_; }

  /// With the expert that returns its input, where there is one.
  /// @throws std::invalid_argument if there is no other.
  Index experts_for(Index num_logits) const {
    require(num_logits >= 1, "BaseLayersRouter: needs at least one expert");
    return num_logits + options_.residual;
  }

  void route(const ConstMatrixRef<Scalar>& logits, Routing<Scalar>& routing, Workers& workers) const {
    const Index num_experts = logits.rows(), num_tokens = logits.cols();
    if (options_.balance) {
      const std::span<Index> expert(workers.shared().template array<Index>(num_tokens), std::size_t(num_tokens));
      assign_balanced<Scalar>(logits, expert, workers);
      write_routes(logits, expert.data(), routing);
    } else {
      const auto expert =
          best_experts<Scalar>(num_experts, num_tokens, 1, workers, [&](Index e, Index t) { return logits(e, t); });
      write_routes(logits, expert, routing);
    }
  }

 private:
  void write_routes(const ConstMatrixRef<Scalar>& logits, const Index* expert, Routing<Scalar>& routing) const {
    const Index routes_a_token = 1 + options_.residual;
    routing.weight_on = WeightOn::output;
    routing.resize(routes_a_token * logits.cols());
    for (Index t = 0; t < logits.cols(); ++t) {
      const Index e = expert[t];
      const auto r = std::size_t(t * routes_a_token);
      const Scalar alpha = Scalar(1) / (Scalar(1) + std::exp(-logits(e, t)));
      routing.token[r] = t, routing.expert[r] = e, routing.weight[r] = alpha;
      if (!options_.residual) continue;
      routing.token[r + 1] = t, routing.expert[r + 1] = logits.rows(), routing.weight[r + 1] = Scalar(1) - alpha;
    }
  }

  BaseLayersOptions options_;
};

/// logits = W·x, where row e of W is c_e; then BaseLayersChoice.
/// Lewis et al. 2021, "BASE Layers: Simplifying Training of Large, Sparse Models", arXiv:2103.16716, §3.
template <class Scalar>
class BaseLayersRouter : public LogitsRouter<LinearLogits<Scalar>, BaseLayersChoice<Scalar>> {
 public:
  /// @param weight  (experts × d_model), not counting the one that returns its input
  /// @throws std::invalid_argument if there is no expert.
  BaseLayersRouter(Weight<Scalar> weight, const BaseLayersOptions& options = {})
      : BaseLayersRouter::LogitsRouter(LinearLogits<Scalar>(std::move(weight), {}, "BaseLayersRouter"),
                                       BaseLayersChoice<Scalar>(options)) {}
};

}  // namespace moe::inline MOE_TARGET
