/// @file  Logits that are scaled, or kept within a bound, before they choose.
#pragma once

#include <cmath>
#include <string>
#include <type_traits>
#include <utility>

#include "moe/core/check.hpp"
#include "moe/core/routing.hpp"
#include "moe/core/tokens.hpp"
#include "moe/core/types.hpp"
#include "moe/kernels/elementary.hpp"
#include "moe/routers/linear_logits.hpp"
#include "moe/routers/logits_router.hpp"
#include "moe/routers/top_k.hpp"
#include "moe/runtime/workers.hpp"

namespace moe::inline MOE_TARGET {

/// l ← soft_cap · tanh(multiplier · l / soft_cap).
struct LogitShape {
  double multiplier = 1;  // Muse Spark's output_multiplier
  double soft_cap = 0;    // Laguna's moe_router_logit_softcapping, Grok's; 0: none, and l ← multiplier · l
};

/// The logits of another part, shaped. They are shaped in the routing, too, so that losses and telemetry see them so.
/// What that part reads of SideInputs, this one does.
template <class Logits>
class ShapedLogits {
  static_assert(ComputesLogits<Logits>, "moe: this part has no d_model(), num_experts() or compute(): ComputesLogits");

 public:
  using Scalar = typename Logits::Scalar;

  /// @param who  what errors begin with
  /// @throws std::invalid_argument unless multiplier and soft_cap are finite, and soft_cap ≥ 0.
  ShapedLogits(Logits logits, const LogitShape& shape, const std::string& who = "ShapedLogits")
      : logits_(std::move(logits)), shape_(shape) {
    require(std::isfinite(shape.multiplier),
            who + ": multiplier is " + std::to_string(shape.multiplier) + ", expected a finite number");
    require(shape.soft_cap >= 0 && std::isfinite(shape.soft_cap),
            who + ": soft_cap is " + std::to_string(shape.soft_cap) + ", expected 0 or more, and finite");
  }

  Index d_model() const { return logits_.d_model(); }
  Index num_experts() const { return logits_.num_experts(); }
  const LogitShape& shape() const { return shape_; }
  const Logits& unshaped() const { return logits_; }
  Logits& unshaped() { return logits_; }

  /// That of the unshaped logits.
  const auto& weight() const
    requires requires(const Logits& logits) { logits.weight(); }
  {
    return logits_.weight();
  }
  /// That of the unshaped logits, to write.
  auto weight()
    requires requires(Logits& logits) { logits.weight(); }
  {
    return logits_.weight();
  }
  /// That of the unshaped logits.
  const auto& bias() const
    requires requires(const Logits& logits) { logits.bias(); }
  {
    return logits_.bias();
  }
  /// That of the unshaped logits, to write.
  auto bias()
    requires requires(Logits& logits) { logits.bias(); }
  {
    return logits_.bias();
  }

  /// @throws std::invalid_argument as the part whose logits are shaped.
  void require_side(const SideInputs<Scalar>& side, const Routing<Scalar>& routing) const {
    if constexpr (requires { logits_.require_side(side, routing); }) logits_.require_side(side, routing);
  }

  /// That of the unshaped logits.
  Index state_size() const
    requires requires(const Logits& logits) { logits.state_size(); }
  {
    return logits_.state_size();
  }

  void compute(const Tokens<Scalar>& tokens, MatrixRef<Scalar> logits, Workers& workers) const {
    logits_.compute(tokens, logits, workers);
    bend(logits, workers);
  }
  void compute(const Tokens<Scalar>& tokens, MatrixRef<Scalar> logits, MatrixRef<Scalar> state, Workers& workers) const
    requires requires(const Logits& part) { part.state_size(); }
  {
    logits_.compute(tokens, logits, state, workers);
    bend(logits, workers);
  }

  /// ∂(shaped logit) / ∂(unshaped logit), where the shaped one is known.
  Scalar slope(Scalar shaped) const {
    const auto multiplier = static_cast<Scalar>(shape_.multiplier), cap = static_cast<Scalar>(shape_.soft_cap);
    if (!(cap > 0)) return multiplier;
    const Scalar share = shaped / cap;
    return multiplier * ((1 - share) * (1 + share));
  }

  /// Under the names of the other part.
  template <class Visit>
  void visit_parameters(Visit& visit) {
    visit.in("", logits_);
  }

 private:
  static constexpr Index tokens_a_task = 16;

  void bend(MatrixRef<Scalar> logits, Workers& workers) const {
    const auto multiplier = static_cast<Scalar>(shape_.multiplier), cap = static_cast<Scalar>(shape_.soft_cap);
    workers.for_each_band(logits.cols(), tokens_a_task, [&](Index first, Index last, Scratch&) {
      for (Index t = first; t < last; ++t) {
        auto l = logits.col(t).array();
        if (multiplier != 1) l *= multiplier;
        if (cap > 0) l = tanh_of(l / cap) * cap;
      }
    });
  }

  /// With the same bits wherever a number stands.
  template <class X>
  static auto tanh_of(const Eigen::ArrayBase<X>& x) {
    if constexpr (std::is_same_v<Scalar, float>) {
      return x.derived().unaryExpr(kernels::OnRegisters<kernels::TanhOf>());
    } else {
      return x.derived().unaryExpr([](Scalar number) { return std::tanh(number); });
    }
  }

  Logits logits_;
  LogitShape shape_;
};

/// LinearLogits, shaped, then TopKChoice. Laguna, with a soft_cap; Muse Spark, with a multiplier.
template <class Scalar>
class ShapedTopK : public LogitsRouter<ShapedLogits<LinearLogits<Scalar>>, TopKChoice<Scalar>> {
 public:
  /// @param weight          (num_experts × d_model): row e scores expert e
  /// @param bias            (num_experts) added to the logits before they are shaped, or empty
  /// @param selection_bias  as of TopKChoice
  /// @throws std::invalid_argument unless the sizes fit, ShapedLogits takes the shape and TopKChoice the options.
  ShapedTopK(Weight<Scalar> weight, const TopKOptions& options, const LogitShape& shape, Vector<Scalar> bias = {},
             Vector<Scalar> selection_bias = {})
      : ShapedTopK::LogitsRouter(
            ShapedLogits(LinearLogits<Scalar>(std::move(weight), std::move(bias), "ShapedTopK"), shape, "ShapedTopK"),
            std::in_place, options, std::move(selection_bias), "ShapedTopK") {}
};

}  // namespace moe::inline MOE_TARGET
