/// @file  A projection with an adapter beside its weight.
#pragma once

#include <cstdint>
#include <memory>
#include <utility>

#include "moe/core/types.hpp"
#include "moe/experts/projection.hpp"
#include "moe/lora/adapter.hpp"
#include "moe/lora/dropout.hpp"
#include "moe/lora/project.hpp"
#include "moe/runtime/workers.hpp"

namespace moe::inline MOE_TARGET {

/// y = W·x + scale·B·A·x + b. The projection may be mapped, and of 16 bits or coded. It is not written, and copies
/// share it. With B = 0 or rank 0 the answers are its own, to the last bit; of rank 0 it is a projection that does not
/// learn.
template <class W>
class LoraProjection {
 public:
  using Scalar = ActivationScalar<W>;
  using Base = Projection<W>;  ///< The projection that the adapter stands beside.

  /// @param dropout  share of what the adapter reads that is left out while it learns, as `seed` and the step's say
  /// @throws std::invalid_argument if a shape does not fit, or unless 0 ≤ dropout < 1.
  LoraProjection(Base base, Adapter<Scalar> adapter, double dropout = 0, std::uint64_t seed = 1)
      : base_(std::make_shared<Base>(std::move(base))), adapter_(std::move(adapter)), dropout_(dropout), seed_(seed) {
    fit(adapter_, out(), in(), "LoraProjection");
    require_dropout(dropout, "LoraProjection");
  }

  Index in() const { return base_->in(); }     ///< Columns of W.
  Index out() const { return base_->out(); }   ///< Rows of W.
  const Base& base() const { return *base_; }  ///< The projection as it is without its adapter.
  const Adapter<Scalar>& adapter() const { return adapter_; }
  Adapter<Scalar>& adapter() { return adapter_; }
  double dropout() const { return dropout_; }
  std::uint64_t seed() const { return seed_; }

  /// What the adapter does not read in this call.
  Dropout dropout_for(const Workers& workers) const { return {dropout_, seed_, workers.seed()}; }

  /// x (in × n_tokens), y (out × n_tokens).
  void compute(const ConstMatrixRef<Scalar>& x, MatrixRef<Scalar> y, Workers& workers) const {
    require_fit(adapter_, out(), in(), "LoraProjection");  // or was replaced
    base_->compute(x, y, workers);
    add_adapted(adapter_, dropout_for(workers), x, y, workers);
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

/// A projection beside an adapter that adds nothing yet.
/// @throws std::invalid_argument if the rank is below 0, or unless 0 ≤ dropout < 1.
template <class W>
LoraProjection<W> with_lora(Projection<W> projection, const LoraOptions& options = {}) {
  auto adapter =
      make_adapter<ActivationScalar<W>>(projection.out(), projection.in(), options.rank, options.alpha, options.seed);
  return {std::move(projection), std::move(adapter), options.dropout, options.seed};
}

/// A projection without an adapter that computes the same, to rounding, with a weight of its own, rounded once.
template <class W>
Projection<W> merged(const LoraProjection<W>& projection) {
  Projection<W> sum(owned(projection.base().stack()), projection.base().bias());
  add_adapter<W>(projection.adapter(), ActivationScalar<W>(1), sum.owned_weight());
  return sum;
}

/// As merged() of a bank of coded weights.
/// @throws std::invalid_argument unless the adapter is of rank 0.
inline Projection<Quantized> merged(const LoraProjection<Quantized>& projection) {
  detail::require_no_adapter(projection.adapter(), "merged: a projection");
  return projection.base();
}

/// As merged_as() of a bank.
template <class W>
Projection<W> merged_as(const LoraProjection<Quantized>& projection) {
  return Projection<W>(merged_as<W>(projection.base().weight(), projection.adapter()), projection.base().bias());
}

}  // namespace moe::inline MOE_TARGET
