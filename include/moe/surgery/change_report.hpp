/// @file  What a layer's outputs lose when it is made smaller.
#pragma once

#include <string>

#include "moe/core/types.hpp"
#include "moe/runtime/executors/serial.hpp"
#include "moe/runtime/workers.hpp"
#include "moe/telemetry/change.hpp"
#include "moe/telemetry/text.hpp"

namespace moe::inline MOE_TARGET {

/// @param x  (d_model × n_tokens) a batch that matters
/// @throws std::invalid_argument as the layers' forward().
template <class Before, class After, class Scalar = typename Before::Scalar>
OutputChange measure_change(const Before& before, const After& after, const ConstMatrixRef<Scalar>& x,
                            ExecutorRef executor = Serial{}) {
  return change_of<Scalar>(before.forward(x, executor), after.forward(x, executor));
}

/// "8 experts → 6: on 512 tokens, outputs are off by 0.031 of their norm, by 0.24 at the worst token\n"
template <class Before, class After, class Scalar = typename Before::Scalar>
std::string change_report(const Before& before, const After& after, const ConstMatrixRef<Scalar>& x,
                          ExecutorRef executor = Serial{}) {
  const auto [relative, worst] = measure_change(before, after, x, executor);
  return std::to_string(before.num_experts()) + " experts → " + std::to_string(after.num_experts()) + ": on " +
         std::to_string(x.cols()) + " tokens, outputs are off by " + detail::rounded(relative, 2) +
         " of their norm, by " + detail::rounded(worst, 2) + " at the worst token\n";
}

}  // namespace moe::inline MOE_TARGET
