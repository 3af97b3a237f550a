/// @file  Drops second experts that count for little.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>

#include "moe/core/check.hpp"
#include "moe/core/random_number.hpp"
#include "moe/core/routing.hpp"
#include "moe/core/scratch.hpp"
#include "moe/core/tokens.hpp"
#include "moe/core/types.hpp"
#include "moe/routers/filters/filtered_router.hpp"
#include "moe/runtime/workers.hpp"

namespace moe::inline MOE_TARGET {

/// Which tokens keep their second expert, of weight w.
enum class KeepSecond {
  always,
  never,
  above_threshold,  ///< if w > threshold
  at_random,        ///< with probability min(1, w / threshold)
};

/// The defaults are GShard's, which keeps the second expert with probability min(1, 2·w): Lepikhin et al. 2020,
/// arXiv:2006.16668, algorithm 1. ST-MoE, Zoph et al. 2022, arXiv:2202.08906, has a threshold of 0.2.
struct SecondExpertOptions {
  KeepSecond keep = KeepSecond::at_random;
  double threshold = 0.5;
};

namespace detail {

inline void require_threshold(double threshold, const char* who) {
  if (threshold >= 0) return;
  require(false, std::string(who) + ": threshold is " + std::to_string(threshold) + ", expected 0 or more");
}

}  // namespace detail

/// Marks as dropped what `options` do not keep of the routes of each token but its first. Weights are read as the
/// router left them, which in these models are shares of one (TopKOptions::renormalize), and do not change. A NaN
/// stays. The random number of a route is a function of seed, token and expert.
/// @throws std::invalid_argument if threshold < 0, if a route leads nowhere, or if there is no seed for random numbers.
template <class Scalar>
void drop_second_experts(Routing<Scalar>& routing, Index num_tokens, Index num_experts,
                         std::optional<std::uint64_t> seed, const SecondExpertOptions& options, Scratch& scratch) {
  detail::require_threshold(options.threshold, "drop_second_experts");
  require_routes(routing, num_tokens, num_experts);
  require(options.keep != KeepSecond::at_random || seed.has_value(),
          "drop_second_experts: side.seed is missing, and KeepSecond::at_random needs one");
  const auto is_kept = [&](Index token, Index expert, Scalar weight) {
    const auto w = static_cast<double>(weight);
    switch (options.keep) {
      case KeepSecond::always:
        return true;
      case KeepSecond::never:
        return false;
      case KeepSecond::above_threshold:
        return !(w <= options.threshold);
      case KeepSecond::at_random:
        return !(w <= options.threshold * uniform_number(*seed, std::uint64_t(token * num_experts + expert)));
    }
    return true;
  };
  auto* const seen = scratch.array<bool>(num_tokens);
  std::fill_n(seen, num_tokens, false);
  for (Index r = 0; r < routing.size(); ++r) {
    const auto its = routing[r];
    const bool is_first = !std::exchange(seen[its.token], true);
    if (!is_first && !is_kept(its.token, its.expert, its.weight)) routing.drop(r);
  }
}

/// drop_second_experts(), as a filter.
struct SecondExpertFilter {
  SecondExpertOptions options;
  static constexpr bool only_drops = true;

  template <class Scalar>
  void apply(const Tokens<Scalar>& tokens, Index num_experts, Routing<Scalar>& routing, Workers& workers) const {
    drop_second_experts(routing, tokens.count(), num_experts, tokens.side.seed, options, workers.shared());
  }
};

/// A router whose second experts may be dropped. Reads SideInputs::seed if that is left to chance; without one, it then
/// throws std::invalid_argument.
template <class R>
class WithSecondExpert : public FilteredRouter<R, SecondExpertFilter> {
 public:
  /// @throws std::invalid_argument if threshold < 0.
  WithSecondExpert(R router, const SecondExpertOptions& options)
      : WithSecondExpert::FilteredRouter(std::move(router), {options}) {
    detail::require_threshold(options.threshold, "WithSecondExpert");
  }
};

}  // namespace moe::inline MOE_TARGET
