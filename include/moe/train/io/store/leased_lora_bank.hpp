/// @file  Gradients of adapters beside experts that are here while a call uses them.
#pragma once

#include <span>

#include "moe/core/dispatch.hpp"
#include "moe/core/types.hpp"
#include "moe/io/store/leased_lora_bank.hpp"
#include "moe/lora/bank.hpp"
#include "moe/lora/dropout.hpp"
#include "moe/runtime/workers.hpp"
#include "moe/train/experts/ffn_bank.hpp"
#include "moe/train/lora/bank.hpp"
#include "moe/train/no_gradient.hpp"

namespace moe::inline MOE_TARGET::io {

template <class W, class Act>
FfnBankTape<ActivationScalar<W>> tape_of(const LeasedLoraBank<W, Act>&) {
  return {};
}

/// As bank.apply(), and keeps in `tape` what backward() needs, which is that of a LoraBank.
/// @throws Error as LeasedBank::apply().
template <class W, class Act, class Scalar = ActivationScalar<W>>
void apply(const LeasedLoraBank<W, Act>& bank, const ConstMatrixRef<Scalar>& x, const DispatchPlan<Scalar>& plan,
           MatrixRef<Scalar> y, FfnBankTape<Scalar>& tape, Workers& workers) {
  const auto kept = tape.keep(bank, plan.num_slots());
  const Dropout dropout(bank.dropout(), bank.seed(), workers.seed());
  bank.base().use_in_turn(x.cols(), plan, workers, [&](const DispatchPlan<Scalar>& some, Index slot) {
    moe::detail::run_lora_bank(bank.base().bank(), bank.adapters(), x, some, y, workers, kept.from(slot), dropout);
  });
}

/// As backward() of a LoraBank: experts are read once more, in the same order.
/// @throws Error as LeasedBank::apply(); gradients are then not to be used.
template <class W, class Act, class Scalar = ActivationScalar<W>>
void backward(const LeasedLoraBank<W, Act>& bank, const ConstMatrixRef<Scalar>& x, const DispatchPlan<Scalar>& plan,
              const ConstMatrixRef<Scalar>& d_y, const FfnBankTape<Scalar>& tape, std::span<Scalar> d_weight,
              MatrixRef<Scalar> d_x, LeasedLoraBank<W, Act>& gradient, Workers& workers) {
  const auto kept = tape.kept(bank, plan.num_slots());
  const Dropout dropout(bank.dropout(), bank.seed(), workers.seed());
  bank.base().use_in_turn(x.cols(), plan, workers, [&](const DispatchPlan<Scalar>& some, Index slot) {
    moe::detail::LoraBackward<Scalar> adapters(bank.adapters(), some, gradient.adapters(), dropout, workers);
    NoGradient<Scalar> none;
    moe::detail::BankBackward<W, Act>(bank.base().bank(), some, kept.from(slot), workers)
        .run(x, d_y, d_weight, d_x, none, adapters);
  });
}

}  // namespace moe::inline MOE_TARGET::io
