/// @file  Balances experts without a loss: a busy one's selection bias falls, an idle one's rises.
#pragma once

#include <cstddef>
#include <iterator>
#include <numeric>
#include <span>
#include <type_traits>

#include "moe/core/check.hpp"
#include "moe/core/types.hpp"

namespace moe::inline MOE_TARGET {

/// How far a bias moves.
enum class BiasStep {
  sign,          ///< rate · sign(mean load − load)
  proportional,  ///< rate · (mean load − load), in routes: choose a rate for the size of your batch
};

/// The defaults are DeepSeek-V3's.
struct BiasUpdateOptions {
  double rate = 1e-3;
  BiasStep step = BiasStep::sign;
};

/// bias_e += rate · sign(mean load − load_e), after each batch. An expert whose load is the mean, exactly, keeps its
/// bias; so do all of them after a batch without tokens.
/// Wang et al. 2024, algorithm 1 and §4.3 for the proportional step, arXiv:2408.15664; DeepSeek-V3, §2.1.2,
/// arXiv:2412.19437.
/// @param load  (num_experts) routes of each expert, those of all micro-batches and ranks added up; of experts that are
///              always chosen, which have no bias, neither a load
/// @param bias  (num_experts) added to the scores when choosing, as LinearTopK's selection_bias
/// @throws std::invalid_argument if the sizes differ.
template <class Bias>
void update_bias(std::span<const Index> load, Bias&& bias, const BiasUpdateOptions& options = {}) {
  using Scalar = typename std::remove_cvref_t<Bias>::Scalar;
  require_equal(std::ssize(load), bias.size(), "update_bias: load.size()");
  const Index num_experts = bias.size(), total = std::accumulate(load.begin(), load.end(), Index(0));
  for (Index e = 0; e < num_experts; ++e) {
    const Index missing = total - num_experts * load[std::size_t(e)];  // num_experts · (mean − load), without rounding
    const double step =
        options.step == BiasStep::sign ? double((missing > 0) - (missing < 0)) : double(missing) / double(num_experts);
    bias(e) += Scalar(options.rate * step);
  }
}

}  // namespace moe::inline MOE_TARGET
