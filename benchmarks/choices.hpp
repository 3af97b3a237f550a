/// @file  Which experts tokens ask, as a router chose them or as chance does.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "moe/core/check.hpp"
#include "moe/core/random_number.hpp"
#include "moe/core/routing.hpp"
#include "moe/core/types.hpp"

namespace moe::bench {

/// Token after token.
struct Choices {
  std::vector<Index> first{0};  // of each token's choices among all, and the end
  std::vector<int> expert;

  Index num_tokens() const { return std::ssize(first) - 1; }

  /// As if the tokens were repeated for ever.
  std::span<const int> of(Index token) const {
    const auto t = std::size_t(token % num_tokens());
    return std::span(expert).subspan(std::size_t(first[t]), std::size_t(first[t + 1] - first[t]));
  }
};

/// What a router chose, without what was dropped.
/// @throws std::invalid_argument if a route leads nowhere; naming `what` if there is no token.
inline Choices choices_of(const Routing<float>& routing, Index num_tokens, Index num_experts, const std::string& what) {
  require_routes(routing, num_tokens, num_experts);
  require(num_tokens > 0, what + ": has no tokens");
  Choices choices;
  choices.first.assign(std::size_t(num_tokens) + 1, 0);
  const auto for_each_route = [&](const auto& use) {
    for (std::size_t r = 0; r < routing.token.size(); ++r) {
      if (!routing.is_dropped(Index(r))) use(std::size_t(routing.token[r]), int(routing.expert[r]));
    }
  };
  for_each_route([&](std::size_t t, int) { ++choices.first[t + 1]; });
  std::partial_sum(choices.first.begin(), choices.first.end(), choices.first.begin());
  choices.expert.resize(std::size_t(choices.first.back()));
  std::vector<Index> next = choices.first;
  for_each_route([&](std::size_t t, int e) { choices.expert[std::size_t(next[t]++)] = e; });
  return choices;
}

/// Tokens that each draw top_k different experts, one after the other, the i-th hottest (from 1 on) with a probability
/// ∝ i^−exponent among those not drawn yet. Which expert is the i-th hottest is drawn, too.
/// @throws std::invalid_argument unless 0 ≤ exponent ≤ 10 and 1 ≤ top_k ≤ num_experts.
inline Choices draw_zipf(Index num_experts, Index top_k, double exponent, Index num_tokens, std::uint64_t seed = 1) {
  require(exponent >= 0 && exponent <= 10,
          "the exponent of Zipf's law is " + std::to_string(exponent) + ", expected 0 (all experts alike) to 10");
  require_between(1, top_k, num_experts, "top_k");
  std::vector<int> by_heat(static_cast<std::size_t>(num_experts));
  std::iota(by_heat.begin(), by_heat.end(), 0);
  for (Index i = num_experts - 1; i > 0; --i) {
    std::swap(by_heat[std::size_t(i)], by_heat[std::size_t(random_below(i + 1, seed, std::uint64_t(i)))]);
  }
  std::vector<double> heat;
  for (Index i = 1; i <= num_experts; ++i) heat.push_back(std::pow(double(i), -exponent));
  const double all = std::accumulate(heat.begin(), heat.end(), 0.0);

  Choices choices;
  std::uint64_t draws = 0;
  for (Index t = 0; t < num_tokens; ++t) {
    std::vector<double> left = heat;
    double sum = all;
    for (Index k = 0; k < top_k; ++k) {
      double at = sum * uniform_number(seed + 1, draws++);
      std::size_t last = 0;  // that is left: rounding may carry `at` past the end
      for (std::size_t i = 0; i < left.size() && at >= 0; at -= left[i++]) {
        if (left[i] > 0) last = i;
      }
      choices.expert.push_back(by_heat[last]);
      sum -= std::exchange(left[last], 0);
    }
    choices.first.push_back(std::ssize(choices.expert));
  }
  return choices;
}

/// How often each expert was chosen.
inline std::vector<double> load_of(const Choices& choices, Index num_experts) {
  std::vector<double> load(std::size_t(num_experts), 0.0);
  for (const int e : choices.expert) ++load[std::size_t(e)];
  return load;
}

}  // namespace moe::bench
