/// @file  The two phases of a bank, with hooks for training and for adapters.
#pragma once

#include <cstddef>

#include "moe/core/dispatch.hpp"
#include "moe/core/task.hpp"
#include "moe/core/types.hpp"
#include "moe/experts/detail/bank_kernels.hpp"
#include "moe/kernels/low_rank.hpp"
#include "moe/runtime/workers.hpp"

namespace moe::inline MOE_TARGET::detail {

/// What is done beside a bank's own products.
template <class Scalar>
struct BankHooks {
  kernels::Kept<Scalar> kept = {};                       // where each slot's gate, up, hidden are kept, if anywhere
  const kernels::LowRanks<Scalar>* low_ranks = nullptr;  // of each expert, or null
  const Task* before_down = nullptr;  // is called once, when kept.hidden was written, and U of down was not read
};

/// bank.apply(), with hooks.
/// @throws std::invalid_argument as require_group().
template <class Bank, class Scalar = typename Bank::Scalar>
void run_bank(const Bank& bank, const ConstMatrixRef<Scalar>& x, const DispatchPlan<Scalar>& plan, MatrixRef<Scalar> y,
              Workers& workers, const BankHooks<Scalar>& hooks = {}) {
  require_group(bank, x, plan, y, "FfnBank");
  if (plan.num_slots() == 0) return;
  const Index d_model = bank.d_model(), d_ff = bank.d_ff();
  const auto biases_of = [&](Index expert) {
    const auto column = [&](const Matrix<Scalar>& bias) { return bias.size() > 0 ? bias.col(expert).data() : nullptr; };
    return kernels::Biases<Scalar>{column(bank.biases().gate), column(bank.biases().up), column(bank.biases().down)};
  };
  const auto run = [&]<kernels::Arithmetic A>(A) {
    kernels::TokenBatches<A> batches(x, plan, y, d_ff, workers, hooks.kept);
    if (hooks.low_ranks != nullptr) {
      for (auto& batch : batches) {
        batch.low_ranks = hooks.low_ranks[batch.expert].from(batch.first);
        if (batch.low_ranks.down.rank == 0) batch.kept.hidden = nullptr;
      }
    }
    const std::size_t bytes = kernels::scratch_bytes<A>(d_model, d_ff, plan.num_slots());

    workers.for_each_band(d_ff, A::step, [&](Index first, Index last, Scratch& scratch) {
      batches.for_each(first, last, [&](const auto& batch, Index top, Index bottom) {
        const Index e = batch.expert;
        scratch.reset(bytes);
        kernels::gate_up<A>((Bank::is_gated ? bank.w_gate() : bank.w_up())[e], bank.w_up()[e], biases_of(e), top,
                            bottom, batch, bank.activation(), scratch);
      });
    });
    if (hooks.before_down != nullptr) (*hooks.before_down)(0, 0);
    workers.for_each_band(d_model, A::step, [&](Index first, Index last, Scratch& scratch) {
      batches.for_each(first, last, [&](const auto& batch, Index top, Index bottom) {
        scratch.reset(bytes);
        kernels::down<A>(bank.w_down()[batch.expert], biases_of(batch.expert), top, bottom, batch, scratch);
      });
    });
  };
  kernels::with_arithmetic<typename Bank::WeightScalar>(workers.numerics(), run, bank.w_gate(), bank.w_up(),
                                                        bank.w_down());
}

}  // namespace moe::inline MOE_TARGET::detail
