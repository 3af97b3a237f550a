/// @file  A router with an adapter beside its weight.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "moe/core/tokens.hpp"
#include "moe/core/types.hpp"
#include "moe/lora/adapter.hpp"
#include "moe/lora/dropout.hpp"
#include "moe/lora/project.hpp"
#include "moe/routers/linear_logits.hpp"
#include "moe/routers/linear_top_k.hpp"
#include "moe/routers/logits_router.hpp"
#include "moe/routers/shaped_top_k.hpp"
#include "moe/routers/top_k.hpp"
#include "moe/routers/top_k_by_modality.hpp"
#include "moe/runtime/workers.hpp"

namespace moe::inline MOE_TARGET {

/// logits = W·x + scale·B·A·x + bias. The linear layer is not written, and copies share it. With B = 0 or rank 0 the
/// logits are its own, to the last bit.
template <class Scalar_>
class LoraLogits {
 public:
  using Scalar = Scalar_;
  using Base = LinearLogits<Scalar>;  ///< The linear layer that the adapter stands beside.

  /// @param dropout  share of what the adapter reads that is left out where a layer that learns has a seed, as `seed`
  /// and that one say: while it learns
  /// @param who      what errors begin with
  /// @throws std::invalid_argument if a shape does not fit, or unless 0 ≤ dropout < 1.
  LoraLogits(Base base, Adapter<Scalar> adapter, double dropout = 0, std::uint64_t seed = 1,
             const std::string& who = "LoraLogits")
      : base_(std::make_shared<Base>(std::move(base))), adapter_(std::move(adapter)), dropout_(dropout), seed_(seed) {
    fit(adapter_, num_experts(), d_model(), who);
    require_dropout(dropout, who);
  }

  Index d_model() const { return base_->d_model(); }
  Index num_experts() const { return base_->num_experts(); }
  const Base& base() const { return *base_; }  ///< The linear layer as it is without its adapter.
  const Adapter<Scalar>& adapter() const { return adapter_; }
  Adapter<Scalar>& adapter() { return adapter_; }
  double dropout() const { return dropout_; }
  std::uint64_t seed() const { return seed_; }

  /// What the adapter does not read in this call.
  Dropout dropout_for(const Workers& workers) const { return {dropout_, seed_, workers.seed()}; }

  void compute(const Tokens<Scalar>& tokens, MatrixRef<Scalar> logits, Workers& workers) const {
    require_fit(adapter_, num_experts(), d_model(), "LoraLogits");  // or was replaced
    base_->compute(tokens, logits, workers);
    add_adapted(adapter_, dropout_for(workers), tokens.x, logits, workers);
  }

  /// The adapter alone learns.
  template <class Visit>
  void visit_parameters(Visit& visit) {
    visit.in("", adapter_);
    visit.frozen("", *base_);
  }

 private:
  std::shared_ptr<Base> base_;
  Adapter<Scalar> adapter_;
  double dropout_;
  std::uint64_t seed_;
};

/// A LinearTopK with an adapter beside its weight: LoraLogits, then its TopKChoice.
template <class Scalar>
class LoraRouter : public LogitsRouter<LoraLogits<Scalar>, TopKChoice<Scalar>> {
 public:
  /// @param dropout, seed  as of LoraLogits
  /// @throws std::invalid_argument if a shape does not fit, or unless 0 ≤ dropout < 1.
  LoraRouter(LinearTopK<Scalar> router, Adapter<Scalar> adapter, double dropout = 0, std::uint64_t seed = 1)
      : LoraRouter::LogitsRouter(
            LoraLogits<Scalar>(std::move(router.logits()), std::move(adapter), dropout, seed, "LoraRouter"),
            std::move(router.choice())) {}
};

/// A router beside an adapter that adds nothing yet.
/// @throws std::invalid_argument if the rank is below 0, or unless 0 ≤ dropout < 1.
template <class Scalar>
LoraRouter<Scalar> with_lora(LinearTopK<Scalar> router, const LoraOptions& options = {}) {
  auto adapter =
      make_adapter<Scalar>(router.num_experts(), router.d_model(), options.rank, options.alpha, options.seed);
  return {std::move(router), std::move(adapter), options.dropout, options.seed};
}

/// The same for shaped logits: the adapter adds before they are shaped.
template <class Scalar, class Choice>
LogitsRouter<ShapedLogits<LoraLogits<Scalar>>, Choice> with_lora(
    LogitsRouter<ShapedLogits<LinearLogits<Scalar>>, Choice> router, const LoraOptions& options = {}) {
  auto adapter =
      make_adapter<Scalar>(router.num_experts(), router.d_model(), options.rank, options.alpha, options.seed);
  LoraLogits<Scalar> logits(std::move(router.logits().unshaped()), std::move(adapter), options.dropout, options.seed);
  return {ShapedLogits(std::move(logits), router.logits().shape()), std::move(router.choice())};
}

/// A router without an adapter that computes the same logits, to rounding.
template <class Scalar>
LinearLogits<Scalar> merged(const LoraLogits<Scalar>& logits) {
  LinearLogits<Scalar> sum = logits.base();
  add_adapter<Scalar>(logits.adapter(), Scalar(1), sum.weight());
  return sum;
}
template <class Scalar>
ShapedLogits<LinearLogits<Scalar>> merged(const ShapedLogits<LoraLogits<Scalar>>& logits) {
  return {merged(logits.unshaped()), logits.shape()};
}
template <class Scalar>
LogitsByModality<LinearLogits<Scalar>> merged(const LogitsByModality<LoraLogits<Scalar>>& logits) {
  std::vector<LinearLogits<Scalar>> parts;
  for (Index m = 0; m < logits.num_modalities(); ++m) parts.push_back(merged(logits[m]));
  return LogitsByModality(std::move(parts));
}
template <class Scalar, class Choice>
auto merged(const LogitsRouter<LoraLogits<Scalar>, Choice>& router) {
  return LogitsRouter(merged(router.logits()), router.choice());
}
template <class Scalar, class Choice>
auto merged(const LogitsRouter<LogitsByModality<LoraLogits<Scalar>>, Choice>& router) {
  return LogitsRouter(merged(router.logits()), router.choice());
}
template <class Scalar, class Choice>
auto merged(const LogitsRouter<ShapedLogits<LoraLogits<Scalar>>, Choice>& router) {
  return LogitsRouter(merged(router.logits()), router.choice());
}
template <class Scalar>
LinearTopK<Scalar> merged(const LoraRouter<Scalar>& router) {
  const auto sum = merged(router.logits());
  return {sum.weight(), router.options(), sum.bias(), router.selection_bias()};
}

}  // namespace moe::inline MOE_TARGET
