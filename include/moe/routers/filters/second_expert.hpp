/// @file  Drops second experts that count for little.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>

#include "moe/core/check.hpp"
#include "moe/core/concepts.hpp"
#include "moe/core/contracts.hpp"
#include "moe/core/random_number.hpp"
#include "moe/core/routing.hpp"
#include "moe/core/scratch.hpp"
#include "moe/core/tokens.hpp"
#include "moe/core/types.hpp"
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
    const Index t = routing.token[std::size_t(r)];
    const bool is_first = !std::exchange(seen[t], true);
    if (!is_first && !is_kept(t, routing.expert[std::size_t(r)], routing.weight[std::size_t(r)])) routing.drop(r);
  }
}

/// A router whose second experts may be dropped. Reads SideInputs::seed if that is left to chance.
template <class R>
class WithSecondExpert {
  static_assert(is_router<R>());

 public:
  using Scalar = typename R::Scalar;

  /// @throws std::invalid_argument if threshold < 0.
  WithSecondExpert(R router, const SecondExpertOptions& options) : router_(std::move(router)), options_(options) {
    detail::require_threshold(options.threshold, "WithSecondExpert");
  }

  Index d_model() const { return router_.d_model(); }
  Index num_experts() const { return router_.num_experts(); }
  Index top_k() const
    requires requires(const R& r) { r.top_k(); }
  {
    return router_.top_k();
  }
  const R& router() const { return router_; }
  R& router() { return router_; }
  const SecondExpertOptions& options() const { return options_; }

  /// @throws std::invalid_argument if there is no seed for random numbers.
  void route(const Tokens<Scalar>& tokens, Routing<Scalar>& routing, Workers& workers) const {
    router_.route(tokens, routing, workers);
    drop_second_experts(routing, tokens.count(), num_experts(), tokens.side.seed, options_, workers.shared());
  }

  template <class Visit>
  void visit_parameters(Visit& visit) {
    visit.in("", router_);
  }

 private:
  R router_;
  SecondExpertOptions options_;
};

}  // namespace moe::inline MOE_TARGET
