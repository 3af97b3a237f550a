/// @file  A linear router that hears what the router of the layer before it computed.
#pragma once

#include <iterator>
#include <string>
#include <utility>

#include "moe/core/check.hpp"
#include "moe/core/routing.hpp"
#include "moe/core/tokens.hpp"
#include "moe/core/types.hpp"
#include "moe/kernels/matmul.hpp"
#include "moe/routers/logits_router.hpp"
#include "moe/routers/top_k.hpp"
#include "moe/runtime/workers.hpp"

namespace moe::inline MOE_TARGET {

/// logits = W·x + W_carry·(logits of the layer before). Reads SideInputs::previous_logits; in the first layer there are
/// none, and logits = W·x. Its own stay in the routing, for the next layer; so two layers that follow each other need a
/// Routing each.
template <class Scalar_>
class CarriedLogits {
 public:
  using Scalar = Scalar_;

  /// @param weight  (num_experts × d_model): row e scores expert e
  /// @param carry   W_carry, (num_experts × experts of the layer before)
  /// @param who     what errors begin with
  /// @throws std::invalid_argument unless the sizes fit.
  CarriedLogits(Weight<Scalar> weight, Weight<Scalar> carry, std::string who = "CarriedLogits")
      : weight_(std::move(weight)), carry_(std::move(carry)), who_(std::move(who)) {
    require_equal(carry_.rows(), num_experts(), who_ + ": carry.rows()");
    require(carry_.cols() >= 1, who_ + ": carry.cols() is 0, expected 1 or more");
  }

  Index d_model() const { return weight_.cols(); }
  Index num_experts() const { return weight_.rows(); }
  const Weight<Scalar>& weight() const { return weight_; }
  const Weight<Scalar>& carry() const { return carry_; }
  auto weight() { return to_write(weight_); }
  auto carry() { return to_write(carry_); }

  /// @throws std::invalid_argument if the logits of the layer before are those of `routing`.
  void require_side(const SideInputs<Scalar>& side, const Routing<Scalar>& routing) const {
    if (side.previous_logits.empty() || side.previous_logits.data() != routing.logits.data()) return;
    require(false, who_ + ": side.previous_logits are those of the routing that is being written");
  }

  /// @throws std::invalid_argument if there are logits of the layer before, but not one for each of its experts and
  /// each token.
  void compute(const Tokens<Scalar>& tokens, MatrixRef<Scalar> logits, Workers& workers) const {
    const auto previous = tokens.side.previous_logits;
    const Index size = previous.empty() ? 0 : carry_.cols() * tokens.count();
    if (std::ssize(previous) != size) require_equal(std::ssize(previous), size, who_ + ": side.previous_logits.size()");
    kernels::matmul<Scalar, Scalar>(map_of(weight_), tokens.x, logits, workers);
    if (previous.empty()) return;
    const Eigen::Map<const Matrix<Scalar>> before(previous.data(), carry_.cols(), tokens.count());
    auto carried = workers.shared().matrix<Scalar>(num_experts(), tokens.count());
    kernels::matmul<Scalar, Scalar>(map_of(carry_), before, carried, workers);
    logits += carried;
  }

  template <class Visit>
  void visit_parameters(Visit& visit) {
    visit("weight", weight_);
    visit("carry.weight", carry_);
  }

 private:
  Weight<Scalar> weight_, carry_;
  std::string who_;
};

/// CarriedLogits, then TopKChoice. Jin et al. 2024, "MoE++", arXiv:2410.07348, §3.2.
template <class Scalar>
class CarriedTopK : public LogitsRouter<CarriedLogits<Scalar>, TopKChoice<Scalar>> {
 public:
  /// @param weight  (num_experts × d_model): row e scores expert e
  /// @param carry   W_carry, (num_experts × experts of the layer before)
  /// @throws std::invalid_argument unless the sizes fit and TopKChoice takes the options.
  CarriedTopK(Weight<Scalar> weight, Weight<Scalar> carry, const TopKOptions& options)
      : CarriedTopK::LogitsRouter(CarriedLogits<Scalar>(std::move(weight), std::move(carry), "CarriedTopK"),
                                  std::in_place, options, Vector<Scalar>(), "CarriedTopK") {}
};

}  // namespace moe::inline MOE_TARGET
