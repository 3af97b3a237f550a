/// @file  Adapters beside the experts of a bank, which are here while a call uses them.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <utility>
#include <vector>

#include "moe/core/concepts.hpp"
#include "moe/core/dispatch.hpp"
#include "moe/core/types.hpp"
#include "moe/io/store/leased_bank.hpp"
#include "moe/lora/adapter.hpp"
#include "moe/lora/bank.hpp"
#include "moe/lora/dropout.hpp"
#include "moe/runtime/workers.hpp"

namespace moe::inline MOE_TARGET::io {

/// A LoraBank whose bank is leased: adapters stay, the weights beside them come and go. Its answers, and its gradients
/// (train/io/store/leased_lora_bank.hpp), are those of a LoraBank, to the last bit.
template <class W, class Act>
class LeasedLoraBank {
 public:
  using Scalar = ActivationScalar<W>;
  using Base = LeasedBank<W, Act>;  ///< The bank that the adapters stand beside.

  static constexpr bool is_gated = Base::is_gated;

  /// @param adapters       of each expert
  /// @param dropout, seed  as of LoraBank
  /// @throws std::invalid_argument as LoraBank.
  LeasedLoraBank(Base base, std::vector<ExpertAdapters<Scalar>> adapters, double dropout = 0, std::uint64_t seed = 1)
      : base_(std::move(base)), adapters_(std::move(adapters)), dropout_(dropout), seed_(seed) {
    moe::detail::for_each_adapter(adapters_, base_, "LeasedLoraBank", [](auto&&... its) { fit(its...); });
    require_dropout(dropout, "LeasedLoraBank");
  }

  Index d_model() const { return base_.d_model(); }
  Index d_ff() const { return base_.d_ff(); }
  Index num_experts() const { return base_.num_experts(); }
  const Base& base() const { return base_; }  ///< The bank as it is without adapters.
  double dropout() const { return dropout_; }
  std::uint64_t seed() const { return seed_; }
  const std::vector<ExpertAdapters<Scalar>>& adapters() const { return adapters_; }
  std::vector<ExpertAdapters<Scalar>>& adapters() { return adapters_; }

  /// @throws Error as LeasedBank::apply().
  void apply(const ConstMatrixRef<Scalar>& x, const DispatchPlan<Scalar>& plan, MatrixRef<Scalar> y,
             Workers& workers) const {
    const auto run = [&](auto&&... call) { moe::detail::run_lora_bank(base_.bank(), adapters_, call...); };
    base_.apply_by(run, x, plan, y, workers);
  }

  /// The adapters alone learn.
  template <class Visit>
  void visit_parameters(Visit& visit) {
    for (std::size_t e = 0; e < adapters_.size(); ++e) visit.expert(Index(e), adapters_[e]);
  }

 private:
  Base base_;
  std::vector<ExpertAdapters<Scalar>> adapters_;
  double dropout_;
  std::uint64_t seed_;
};

/// Experts of a store lie in files, and have no room for a sum.
/// @throws std::logic_error always, saying what to do.
template <class W, class Act>
LeasedLoraBank<W, Act> merged(const LeasedLoraBank<W, Act>&) {
  throw std::logic_error(
      "merged: experts of a store stay in their files: merge the layer of a Model of the same folder");
}

}  // namespace moe::inline MOE_TARGET::io
