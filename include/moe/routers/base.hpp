/// @file  The router of BASE layers: a balanced assignment.
#pragma once

#include <cmath>
#include <span>
#include <utility>

#include "moe/core/check.hpp"
#include "moe/core/routing.hpp"
#include "moe/core/types.hpp"
#include "moe/routers/detail/balanced_assignment.hpp"
#include "moe/routers/detail/best_k.hpp"
#include "moe/routers/detail/logits.hpp"
#include "moe/runtime/workers.hpp"

namespace moe::inline MOE_TARGET {

struct BaseOptions {
  bool balance = true;   // false: each token goes to its expert of largest logit, as is done when the model is used
  bool residual = true;  // 1 − α of a token goes to one more expert, which is to return its input
};

/// logits = W·x, where row e of W is c_e; assign_balanced() finds each token's expert e, and
///   y = α E_e(x) + (1 − α) x,  α = σ(x·c_e).
/// Lewis et al. 2021, "BASE Layers: Simplifying Training of Large, Sparse Models", arXiv:2103.16716, §3.
///
/// With `residual`, (1 − α) x is a route of its own: each token's second, to expert number W.rows(), the last, which
/// must be there and return its input. The logits have no row for it. Without, y = α E_e(x).
/// The balance holds in the batch and depends on all of it. A NaN ranks last, and shows in the weight.
template <class Scalar_>
class BaseRouter {
 public:
  using Scalar = Scalar_;
  using Vector = Eigen::Matrix<Scalar, Eigen::Dynamic, 1>;

  /// @param weight  (experts × d_model), not counting the one that returns its input
  /// @throws std::invalid_argument if there is no expert.
  BaseRouter(Weight<Scalar> weight, const BaseOptions& options = {}) : weight_(std::move(weight)), options_(options) {
    require(weight_.rows() >= 1, "BaseRouter: needs at least one expert");
  }

  Index d_model() const { return weight_.cols(); }
  /// With the expert that returns its input, where there is one.
  Index num_experts() const { return weight_.rows() + options_.residual; }
  const Weight<Scalar>& weight() const { return weight_; }
  Eigen::Map<Weight<Scalar>> weight() { return {weight_.data(), weight_.rows(), weight_.cols()}; }  // to write
  const BaseOptions& options() const { return options_; }

  void route(const ConstMatrixRef<Scalar>& x, Routing<Scalar>& routing, Workers& workers) const {
    route_logits(linear_logits(weight_, Vector(), x, routing, workers), routing, workers);
  }

  /// The same for logits (weight().rows() × n_tokens) that are there already.
  void route_logits(const ConstMatrixRef<Scalar>& logits, Routing<Scalar>& routing, Workers& workers) const {
    const Index num_tokens = logits.cols();
    const std::span<Index> expert(workers.shared().template array<Index>(num_tokens), std::size_t(num_tokens));
    if (options_.balance) {
      assign_balanced<Scalar>(logits, expert, workers);
    } else {
      assign_greedily(logits, expert, workers);
    }
    write_routes(logits, expert, routing);
  }

  template <class Visit>
  void visit_parameters(Visit& visit) {
    visit("weight", weight_);
  }

 private:
  void assign_greedily(const ConstMatrixRef<Scalar>& logits, std::span<Index> expert, Workers& workers) const {
    BestK<Scalar> best(workers.shared(), 1);
    for (Index t = 0; t < logits.cols(); ++t) {
      best.clear();
      for (Index e = 0; e < logits.rows(); ++e) best.offer(e, logits(e, t));
      expert[std::size_t(t)] = best.items()[0];
    }
  }

  void write_routes(const ConstMatrixRef<Scalar>& logits, std::span<const Index> expert,
                    Routing<Scalar>& routing) const {
    const Index routes_a_token = 1 + options_.residual;
    routing.weight_on = WeightOn::output;
    routing.resize(routes_a_token * logits.cols());
    for (Index t = 0; t < logits.cols(); ++t) {
      const Index e = expert[std::size_t(t)];
      const auto r = std::size_t(t * routes_a_token);
      const Scalar alpha = Scalar(1) / (Scalar(1) + std::exp(-logits(e, t)));
      routing.token[r] = t, routing.expert[r] = e, routing.weight[r] = alpha;
      if (!options_.residual) continue;
      routing.token[r + 1] = t, routing.expert[r + 1] = logits.rows(), routing.weight[r + 1] = Scalar(1) - alpha;
    }
  }

  Weight<Scalar> weight_;
  BaseOptions options_;
};

}  // namespace moe::inline MOE_TARGET
