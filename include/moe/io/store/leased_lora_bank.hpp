/// @file  Adapters beside the experts of a bank, which are here while a call uses them.
#pragma once

#include <stdexcept>

#include "moe/core/dispatch.hpp"
#include "moe/core/types.hpp"
#include "moe/io/store/leased_bank.hpp"
#include "moe/lora/bank.hpp"
#include "moe/runtime/workers.hpp"

namespace moe::inline MOE_TARGET::io {

/// A LoraBank whose bank is leased: adapters stay, the weights beside them come and go. Its answers, and its gradients
/// (train/io/store/leased_lora_bank.hpp), are those of a LoraBank, to the last bit.
template <class W, class Act>
class LeasedLoraBank : public BesideBank<LeasedBank<W, Act>> {
 public:
  using Scalar = ActivationScalar<W>;
  using BesideBank<LeasedBank<W, Act>>::BesideBank;

  /// @throws Error as LeasedBank::apply().
  void apply(const ConstMatrixRef<Scalar>& x, const DispatchPlan<Scalar>& plan, MatrixRef<Scalar> y,
             Workers& workers) const {
    const auto run = [&](auto&&... call) {
      moe::detail::run_lora_bank(this->base().bank(), this->adapters(), call...);
    };
    this->base().apply_by(run, x, plan, y, workers);
  }
};

/// Experts of a store lie in files, and have no room for a sum.
/// @throws std::logic_error always, saying what to do.
template <class W, class Act>
LeasedLoraBank<W, Act> merged(const LeasedLoraBank<W, Act>&) {
  throw std::logic_error(
      "merged: experts of a store stay in their files: merge the layer of a Model of the same folder");
}

}  // namespace moe::inline MOE_TARGET::io
