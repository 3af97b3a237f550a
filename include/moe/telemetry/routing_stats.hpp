/// @file  Where the tokens went, summed over any number of batches.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <span>
#include <vector>

#include "moe/core/check.hpp"
#include "moe/core/routing.hpp"
#include "moe/core/scratch.hpp"
#include "moe/core/token_mask.hpp"
#include "moe/core/types.hpp"
#include "moe/kernels/scores.hpp"
#include "moe/telemetry/entropy.hpp"

namespace moe::inline MOE_TARGET {

/// What is counted.
struct RoutingStatsOptions {
  /// How logits become the probabilities of a token: their softmax over all experts, before any choice (for
  /// softmax_of_chosen, too); sigmoid and sqrt_softplus scores are divided by their sum, as DeepSeek-V3's balance loss
  /// does (arXiv:2412.19437, §2.1.2).
  Score score = Score::softmax;

  /// Pairs of experts are counted where there are at most so many experts. E experts need E·(E − 1)/2 numbers: 261 kB a
  /// layer for 256, which is at home in a second-level cache; more than 1 MB for 512.
  Index pairs_up_to = 256;
};

/// Statistics of one layer's routing. All of it is sums (beside one minimum), so that those of other threads or ranks
/// can be merged. A mean over nothing is NaN.
///
/// Load is what reached an expert: routes that were dropped are counted apart. Probabilities, entropy and margin are
/// those of the logits; a token with a NaN among them is left out there and counted in num_nan_tokens().
class RoutingStats {
 public:
  /// @throws std::invalid_argument unless num_experts ≥ 1.
  explicit RoutingStats(Index num_experts, const RoutingStatsOptions& options = {})
      : num_experts_(num_experts), options_(options) {
    require_between(1, num_experts, std::numeric_limits<Index>::max(), "RoutingStats: num_experts");
    const Index pairs = counts_pairs() ? pair(0, num_experts) : 0;
    sums_.assign(num_scalars + num_per_expert * std::size_t(num_experts) + std::size_t(pairs), 0.0);
  }

  /// Adds a batch. A call with the sizes of the last one allocates nothing.
  /// @param mask  SideInputs::mask: padding is not counted
  /// @throws std::invalid_argument if a route leads nowhere, if there are logits but not num_experts for each token, or
  /// if the mask has another length.
  template <class Scalar>
  void add(const Routing<Scalar>& routing, Index num_tokens, TokenMask mask = {}) {
    require_routes(routing, num_tokens, num_experts_);
    require_mask(mask, num_tokens, "RoutingStats");
    if (!routing.logits.empty()) {
      require_equal(std::ssize(routing.logits), num_experts_ * num_tokens, "RoutingStats: logits.size()");
    }
    scratch_.reset();
    scratch_.reserve(sizeof(Index) * std::size_t(2 * num_tokens + 1 + routing.size()) +
                     2 * sizeof(Scalar) * std::size_t(num_experts_) + 5 * Scratch::alignment);
    sums_[tokens] += double(num_tokens - std::count(mask.begin(), mask.end(), 0));
    add_routes(routing, mask);
    const Index* const first = add_pairs(routing, num_tokens, mask);
    if (!routing.logits.empty()) add_logits(routing.logits.data(), num_tokens, mask, first);
  }

  /// Adds what another one has counted.
  /// @throws std::invalid_argument if it is of another number of experts, or of other options.
  RoutingStats& operator+=(const RoutingStats& other) {
    require_equal(other.num_experts_, num_experts_, "RoutingStats: other.num_experts()");
    require_equal(int(other.options_.score), int(options_.score), "RoutingStats: other.options().score");
    require_equal(other.counts_pairs(), counts_pairs(), "RoutingStats: other.counts_pairs()");
    for (std::size_t i = 0; i < sums_.size(); ++i) sums_[i] += other.sums_[i];
    minimum_ = std::min(minimum_, other.minimum_);
    return *this;
  }

  /// Forgets all batches, but not the memory.
  void clear() {
    std::fill(sums_.begin(), sums_.end(), 0.0);
    minimum_ = std::numeric_limits<double>::infinity();
  }

  /// All state, to be merged elsewhere (MPI_Allreduce in place): add these …
  std::span<double> sums() { return sums_; }
  std::span<const double> sums() const { return sums_; }  ///< The same, to read.
  /// … and keep the smaller of these. The order depends on num_experts and options alone; counts are exact below 2⁵³.
  std::span<double> minima() { return {&minimum_, 1}; }
  std::span<const double> minima() const { return {&minimum_, 1}; }  ///< The same, to read.

  Index num_experts() const { return num_experts_; }
  const RoutingStatsOptions& options() const { return options_; }
  bool counts_pairs() const { return num_experts_ <= options_.pairs_up_to; }  ///< Are pairs of experts counted?

  Index num_tokens() const { return Index(sums_[tokens]); }                   ///< Tokens of all batches.
  Index num_nan_tokens() const { return Index(sums_[nan_tokens]); }           ///< Tokens whose probabilities were NaN.
  Index load(Index expert) const { return Index(of_expert(loads, expert)); }  ///< Routes that an expert kept.
  /// Routes that an expert had no room for.
  Index dropped(Index expert) const { return Index(of_expert(drops, expert)); }
  Index total_load() const { return Index(total(loads)); }     ///< Routes that were kept.
  Index total_dropped() const { return Index(total(drops)); }  ///< Routes that were dropped.

  /// Σ loads / tokens.
  double routes_per_token() const { return total(loads) / sums_[tokens]; }

  /// Dropped routes / all routes, 0 to 1.
  double drop_rate() const { return total(drops) / (total(loads) + total(drops)); }
  /// The same of one expert's routes.
  double drop_rate(Index expert) const {
    return of_expert(drops, expert) / (of_expert(loads, expert) + of_expert(drops, expert));
  }

  /// The largest load / the mean load: 1 at perfect balance, num_experts at the worst.
  double load_peak() const {
    const auto all = every(loads);
    return *std::max_element(all.begin(), all.end()) / mean_load();
  }

  /// Coefficient of variation of the loads: √variance / mean. 0 at perfect balance.
  double load_variation() const {
    const double mean = mean_load();
    double squares = 0;
    for (const double load : every(loads)) squares += (load - mean) * (load - mean);
    return std::sqrt(squares / double(num_experts_)) / mean;
  }

  /// Experts that no token reached.
  std::vector<Index> dead_experts() const {
    std::vector<Index> dead;
    for (Index e = 0; e < num_experts_; ++e) {
      if (load(e) == 0) dead.push_back(e);
    }
    return dead;
  }
  /// Experts that kept no route.
  Index num_dead_experts() const {
    const auto all = every(loads);
    return std::count(all.begin(), all.end(), 0.0);
  }

  double mean_load() const { return total(loads) / double(num_experts_); }  ///< Routes kept / experts.
  /// Mean over tokens of an expert's probability.
  double mean_probability(Index expert) const { return of_expert(probability, expert) / sums_[logit_tokens]; }

  /// Mean over tokens of −Σ p ln p, in nats: 0 to ln num_experts.
  double mean_entropy() const { return sums_[entropies] / sums_[logit_tokens]; }
  /// The same as a share of ln num_experts, 0 to 1; of one expert it is 1.
  double entropy_share() const {
    return num_experts_ == 1 ? mean_entropy() + 1 : mean_entropy() / std::log(num_experts_);
  }

  /// How far the k-th largest logit of a token was above the next, where k is the number of its routes, dropped or not.
  /// Tokens of no route, of all experts, or with an infinite margin (the next is masked) have none.
  double mean_margin() const { return sums_[margins] / sums_[margin_tokens]; }
  /// The smallest of these; NaN where there is none.
  double min_margin() const { return sums_[margin_tokens] > 0 ? minimum_ : std::numeric_limits<double>::quiet_NaN(); }

  /// How many tokens went to both experts. (One that goes to an expert twice counts twice.)
  /// @throws std::invalid_argument if pairs are not counted.
  Index pairs(Index a, Index b) const {
    require(counts_pairs(), "RoutingStats: pairs are not counted for so many experts: see RoutingStatsOptions");
    return a == b ? load(a) : Index(every_pair()[std::size_t(pair(std::min(a, b), std::max(a, b)))]);
  }

 private:
  enum Scalars : std::size_t { tokens, nan_tokens, logit_tokens, entropies, margin_tokens, margins, num_scalars };
  enum PerExpert : std::size_t { loads, drops, probability, num_per_expert };

  /// The place of a pair low < high: one triangle of a symmetric matrix.
  static Index pair(Index low, Index high) { return high * (high - 1) / 2 + low; }

  std::span<double> every(PerExpert what) {
    return std::span(sums_).subspan(num_scalars + what * std::size_t(num_experts_), std::size_t(num_experts_));
  }
  std::span<const double> every(PerExpert what) const { return const_cast<RoutingStats&>(*this).every(what); }
  std::span<double> every_pair() {
    return std::span(sums_).subspan(num_scalars + num_per_expert * std::size_t(num_experts_));
  }
  std::span<const double> every_pair() const { return const_cast<RoutingStats&>(*this).every_pair(); }
  double of_expert(PerExpert what, Index e) const { return every(what)[std::size_t(e)]; }
  double total(PerExpert what) const {
    const auto all = every(what);
    return std::accumulate(all.begin(), all.end(), 0.0);
  }

  template <class Scalar>
  void add_routes(const Routing<Scalar>& routing, TokenMask mask) {
    const auto kept = every(loads), lost = every(drops);
    for (Index r = 0; r < routing.size(); ++r) {
      const auto its = routing[r];
      if (!is_masked(mask, its.token)) ++(routing.is_dropped(r) ? lost : kept)[std::size_t(its.expert)];
    }
  }

  /// Returns where the routes of each token begin once they are grouped by token; num_tokens + 1 of them.
  template <class Scalar>
  const Index* add_pairs(const Routing<Scalar>& routing, Index num_tokens, TokenMask mask) {
    auto* const first = scratch_.array<Index>(num_tokens + 1);
    std::fill_n(first, num_tokens + 1, Index(0));
    for (const Index t : routing.token) ++first[t + 1];
    std::partial_sum(first, first + num_tokens + 1, first);
    if (!counts_pairs()) return first;

    auto* const end = scratch_.array<Index>(num_tokens);  // of the experts that a token has met so far
    auto* const met = scratch_.array<Index>(routing.size());
    std::copy_n(first, num_tokens, end);
    const auto together = every_pair();
    for (Index r = 0; r < routing.size(); ++r) {
      const Index t = routing[r].token, e = routing[r].expert;
      if (routing.is_dropped(r) || is_masked(mask, t)) continue;
      for (Index i = first[t]; i < end[t]; ++i) {
        if (met[i] != e) ++together[std::size_t(pair(std::min(met[i], e), std::max(met[i], e)))];
      }
      met[end[t]++] = e;
    }
    return first;
  }

  template <class Scalar>
  void add_logits(const Scalar* logits, Index num_tokens, TokenMask mask, const Index* first) {
    using Column = Eigen::Array<Scalar, Eigen::Dynamic, 1>;
    Eigen::Map<Column, Eigen::Aligned64> p(scratch_.array<Scalar>(num_experts_), num_experts_);
    auto* const sorted = scratch_.array<Scalar>(num_experts_);
    Eigen::Map<Eigen::ArrayXd> probabilities_of_experts(every(probability).data(), num_experts_);
    for (Index t = 0; t < num_tokens; ++t) {
      if (is_masked(mask, t)) continue;
      const Eigen::Map<const Column> of_token(logits + t * num_experts_, num_experts_);
      probabilities(options_.score, of_token, p);
      if (std::isnan(p(0))) {
        ++sums_[nan_tokens];
        continue;
      }
      ++sums_[logit_tokens];
      sums_[entropies] += detail::entropy(p);
      probabilities_of_experts += p.template cast<double>();
      const Index k = first[t + 1] - first[t];
      if (k < 1 || k >= num_experts_) continue;
      std::copy_n(of_token.data(), num_experts_, sorted);
      const double distance = detail::margin(sorted, num_experts_, k);
      if (!std::isfinite(distance)) continue;
      ++sums_[margin_tokens];
      sums_[margins] += distance;
      minimum_ = std::min(minimum_, distance);
    }
  }

  Index num_experts_;
  RoutingStatsOptions options_;
  std::vector<double> sums_;  // Scalars; PerExpert, each num_experts; pairs, if counted
  double minimum_ = std::numeric_limits<double>::infinity();
  Scratch scratch_;
};

}  // namespace moe::inline MOE_TARGET
