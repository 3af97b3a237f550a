/// @file  A linear router that hears what the router of the layer before it computed.
#pragma once

#include <iterator>
#include <utility>

#include "moe/core/check.hpp"
#include "moe/core/routing.hpp"
#include "moe/core/tokens.hpp"
#include "moe/core/types.hpp"
#include "moe/kernels/matmul.hpp"
#include "moe/routers/detail/logits.hpp"
#include "moe/routers/top_k.hpp"
#include "moe/runtime/workers.hpp"

namespace moe::inline MOE_TARGET {

/// logits = W·x + W_carry·(logits of the layer before); then TopKChoice. Reads SideInputs::previous_logits; in the
/// first layer there are none, and logits = W·x. Its own stay in the routing, for the next layer; so two layers that
/// follow each other need a Routing each.
/// Jin et al. 2024, "MoE++", arXiv:2410.07348, §3.2.
template <class Scalar_>
class CarriedTopK {
 public:
  using Scalar = Scalar_;
  using Vector = Eigen::Matrix<Scalar, Eigen::Dynamic, 1>;

  /// @param weight  (num_experts × d_model): row e scores expert e
  /// @param carry   W_carry, (num_experts × experts of the layer before)
  /// @throws std::invalid_argument unless the sizes fit and TopKChoice takes the options.
  CarriedTopK(Weight<Scalar> weight, Weight<Scalar> carry, const TopKOptions& options)
      : weight_(std::move(weight)), carry_(std::move(carry)), choice_(weight_.rows(), options, {}, "CarriedTopK") {
    require_equal(carry_.rows(), num_experts(), "CarriedTopK: carry.rows()");
    require(carry_.cols() >= 1, "CarriedTopK: carry.cols() is 0, expected 1 or more");
  }

  Index d_model() const { return weight_.cols(); }
  Index num_experts() const { return weight_.rows(); }
  Index top_k() const { return choice_.top_k(); }
  const TopKOptions& options() const { return choice_.options(); }
  const Weight<Scalar>& weight() const { return weight_; }
  const Weight<Scalar>& carry() const { return carry_; }
  const TopKChoice<Scalar>& choice() const { return choice_; }

  /// To write.
  Eigen::Map<Weight<Scalar>> weight() { return {weight_.data(), weight_.rows(), weight_.cols()}; }
  Eigen::Map<Weight<Scalar>> carry() { return {carry_.data(), carry_.rows(), carry_.cols()}; }

  /// @throws std::invalid_argument if there are logits of the layer before, but not one for each of its experts and
  /// each token, or if they are those of `routing`.
  void route(const Tokens<Scalar>& tokens, Routing<Scalar>& routing, Workers& workers) const {
    const auto previous = tokens.side.previous_logits;
    if (!previous.empty()) {
      require_equal(std::ssize(previous), carry_.cols() * tokens.count(), "CarriedTopK: side.previous_logits.size()");
      require(previous.data() != routing.logits.data(),
              "CarriedTopK: side.previous_logits are those of the routing that is being written");
    }
    LogitsMap<Scalar> logits = linear_logits(weight_, Vector(), tokens.x, routing, workers);
    if (!previous.empty()) {
      const Eigen::Map<const Matrix<Scalar>> before(previous.data(), carry_.cols(), tokens.count());
      auto carried = workers.shared().matrix<Scalar>(num_experts(), tokens.count());
      kernels::matmul<Scalar, Scalar>(map_of(carry_), before, carried, workers);
      logits += carried;
    }
    choice_.route(logits, routing, workers);
  }

  template <class Visit>
  void visit_parameters(Visit& visit) {
    visit("weight", weight_);
    visit("carry.weight", carry_);
  }

 private:
  Weight<Scalar> weight_, carry_;
  TopKChoice<Scalar> choice_;
};

}  // namespace moe::inline MOE_TARGET
