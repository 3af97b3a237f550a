/// @file  Which of the experts in memory goes when another one needs its room.
#pragma once

#include <algorithm>
#include <array>
#include <compare>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <span>
#include <type_traits>
#include <utility>
#include <vector>

#include "moe/core/check.hpp"
#include "moe/core/types.hpp"

namespace moe::inline MOE_TARGET::io {

/// One expert of a model. Layers are counted in the order in which a token meets them.
struct ExpertId {
  Index layer = 0;
  Index expert = 0;

  friend auto operator<=>(const ExpertId&, const ExpertId&) = default;  ///< By layers, then by experts.
};

/// Chooses who goes. A call of a layer first says used(), once, with all experts that it will read, ascending, whether
/// they are in memory or not; then, for each that is not and finds no room, victim() until there is room:
///   experts    of the layer, none twice
///   candidates in memory, and read by no call that is under way; in any order, at least one
///   layer      whose call this is
/// victim() must answer with a candidate, and with the same one in whatever order they stand: so a run can be told
/// beforehand (simulate.hpp). Both are called by one thread at a time.
template <class P>
concept EvictionPolicy = std::copyable<P> && requires(P& policy, std::span<const ExpertId> experts, Index layer) {
  { policy.used(experts, layer) } -> std::same_as<void>;
  { policy.victim(experts, layer) } -> std::same_as<ExpertId>;
};

namespace detail {

/// A T for each expert that was asked for; those of others are T().
template <class T>
class OfExperts {
 public:
  T& operator[](const ExpertId& id) {
    auto& layer = layer_at(id.layer);
    if (std::ssize(layer) <= id.expert) layer.resize(std::size_t(id.expert) + 1);
    return layer[std::size_t(id.expert)];
  }
  T at(const ExpertId& id) const {
    const T* const found = find(id);
    return found == nullptr ? T() : *found;
  }
  const T* find(const ExpertId& id) const {
    if (id.layer >= std::ssize(layers_)) return nullptr;
    const auto& layer = layers_[std::size_t(id.layer)];
    return id.expert < std::ssize(layer) ? &layer[std::size_t(id.expert)] : nullptr;
  }

 private:
  std::vector<T>& layer_at(Index layer) {
    if (std::ssize(layers_) <= layer) layers_.resize(std::size_t(layer) + 1);
    return layers_[std::size_t(layer)];
  }

  std::vector<std::vector<T>> layers_;
};

/// The candidate of the least worth; of several, the first by layer and expert.
template <class F>
ExpertId least(std::span<const ExpertId> candidates, const F& worth) {
  require(!candidates.empty(), "EvictionPolicy: 0 candidates, expected at least 1");
  ExpertId best = candidates[0];
  auto lowest = worth(best);
  for (const ExpertId& candidate : candidates.subspan(1)) {
    const auto its = worth(candidate);
    if (its < lowest || (its == lowest && candidate < best)) best = candidate, lowest = its;
  }
  return best;
}

/// decay^n for n in [0, size), in units of 2⁻³².
template <std::size_t size>
constexpr std::array<std::uint64_t, size> powers_of(double decay) {
  std::array<std::uint64_t, size> powers{std::uint64_t(1) << 32};
  const auto factor = std::uint64_t(decay * 4294967296.);
  for (std::size_t n = 1; n < size; ++n) powers[n] = powers[n - 1] * factor >> 32;
  return powers;
}

}  // namespace detail

/// Evicts what was used longest ago. Where less than one token's walk over all layers fits, each expert is evicted
/// just before it is used again, and nothing is ever found in memory: prefer DecayedCounts.
class Lru {
 public:
  void used(std::span<const ExpertId> experts, Index /*layer*/) {
    ++calls_;
    for (const ExpertId& id : experts) last_[id] = calls_;
  }

  ExpertId victim(std::span<const ExpertId> candidates, Index /*layer*/) const {
    return detail::least(candidates, [&](const ExpertId& id) { return last_.at(id); });
  }

 private:
  std::int64_t calls_ = 0;
  detail::OfExperts<std::int64_t> last_;
};

/// Evicts what will probably be used last, by what was used so far. How likely an expert is in its layer's next call is
/// told by two counts of its uses: one that forgets half in 17 calls of the layer, and one that forgets two thirds in a
/// single call: a token's experts are often those of the token before. Of experts that are as likely, the one whose
/// layer comes last goes: a token passes all others before. A call that uses many experts, for many tokens, says little
/// of each, and counts for little: it does not evict what single tokens need.
/// Numbers are integers: every build of every processor evicts the same.
class DecayedCounts {
 public:
  void used(std::span<const ExpertId> experts, Index layer) {
    if (experts.empty()) return;
    if (std::ssize(layers_) <= layer) layers_.resize(std::size_t(layer) + 1);
    Layer& its = layers_[std::size_t(layer)];
    ++its.calls;
    its.fewest = std::min(its.fewest, std::ssize(experts));
    const std::uint64_t weight = one * std::uint64_t(its.fewest) / experts.size();
    for (const ExpertId& id : experts) {
      Counts& counts = counts_[id];
      counts = at(counts, its.calls);
      counts.lasting += weight;
      counts.brief += weight;
    }
  }

  ExpertId victim(std::span<const ExpertId> candidates, Index layer) const {
    const Index num_layers = std::max<Index>(std::ssize(layers_), 1);
    return detail::least(candidates, [&](const ExpertId& id) {
      const Index calls = id.layer < std::ssize(layers_) ? layers_[std::size_t(id.layer)].calls : 0;
      const Counts now = at(counts_.at(id), calls);
      const Index ahead = id.layer - layer + (id.layer > layer ? 0 : num_layers);   // layers until it is its turn, …
      const Index near = 2 * num_layers - std::clamp<Index>(ahead, 1, num_layers);  // … if they are known
      return (now.lasting + brief_weight * now.brief + unseen) * std::uint64_t(near);
    });
  }

 private:
  struct Counts {
    std::uint64_t lasting = 0, brief = 0;  // of `one` a use
    Index call = 0;                        // of the layer, when they were so
  };
  struct Layer {
    Index calls = 0;
    Index fewest = std::numeric_limits<Index>::max();  // experts in one of them
  };

  /// Chosen by simulation of recorded traces: docs/out_of_core.md.
  static constexpr std::uint64_t one = std::uint64_t(1) << 24;
  static constexpr double lasting_decay = 0.96, brief_decay = 0.3;  // a call of the layer
  static constexpr std::uint64_t brief_weight = 5;
  static constexpr std::uint64_t unseen = one / 24;  // what an expert that was never used counts for

  static constexpr auto lasting_powers = detail::powers_of<512>(lasting_decay);
  static constexpr auto brief_powers = detail::powers_of<16>(brief_decay);

  /// What is left of them in a later call.
  static Counts at(const Counts& counts, Index call) {
    const auto rest = [&](std::uint64_t count, const auto& powers) {
      const auto n = std::size_t(call - counts.call);
      return n < powers.size() ? count * powers[n] >> 32 : 0;
    };
    return {rest(counts.lasting, lasting_powers), rest(counts.brief, brief_powers), call};
  }

  std::vector<Layer> layers_;
  detail::OfExperts<Counts> counts_;
};

/// A policy whose type is not known here.
class AnyPolicy {
 public:
  AnyPolicy() : AnyPolicy(DecayedCounts()) {}

  /// Moves or copies the policy in.
  template <class P>
    requires(!std::same_as<std::remove_cvref_t<P>, AnyPolicy> && EvictionPolicy<std::remove_cvref_t<P>>)
  AnyPolicy(P&& policy) : held_(std::make_unique<Held<std::remove_cvref_t<P>>>(std::forward<P>(policy))) {}

  AnyPolicy(const AnyPolicy& other) : held_(other.held_->copy()) {}  ///< A policy of its own.
  AnyPolicy(AnyPolicy&&) noexcept = default;                         ///< The other is then to be assigned or destroyed.
  /// Takes the place of the policy that was there.
  AnyPolicy& operator=(AnyPolicy other) noexcept {
    held_ = std::move(other.held_);
    return *this;
  }

  void used(std::span<const ExpertId> experts, Index layer) { held_->used(experts, layer); }
  ExpertId victim(std::span<const ExpertId> candidates, Index layer) { return held_->victim(candidates, layer); }

 private:
  struct Interface {
    Interface() = default;
    Interface(const Interface&) = default;
    Interface& operator=(const Interface&) = delete;
    virtual ~Interface() = default;
    virtual void used(std::span<const ExpertId> experts, Index layer) = 0;
    virtual ExpertId victim(std::span<const ExpertId> candidates, Index layer) = 0;
    virtual std::unique_ptr<Interface> copy() const = 0;
  };
  template <class P>
  struct Held final : Interface {
    explicit Held(P its) : policy(std::move(its)) {}
    void used(std::span<const ExpertId> experts, Index layer) override { policy.used(experts, layer); }
    ExpertId victim(std::span<const ExpertId> candidates, Index layer) override {
      return policy.victim(candidates, layer);
    }
    std::unique_ptr<Interface> copy() const override { return std::make_unique<Held>(*this); }

    P policy;
  };

  std::unique_ptr<Interface> held_;
};

/// Keeps some experts, such as the hottest() of a trace, once they are there, as long as there is any other to evict;
/// the others go as another policy says.
class Pinned {
 public:
  /// @param others  of those that are not kept
  explicit Pinned(std::span<const ExpertId> kept, AnyPolicy others = {}) : others_(std::move(others)) {
    for (const ExpertId& id : kept) kept_[id] = true;
  }

  void used(std::span<const ExpertId> experts, Index layer) { others_.used(experts, layer); }

  ExpertId victim(std::span<const ExpertId> candidates, Index layer) {
    free_.clear();
    for (const ExpertId& id : candidates) {
      if (!kept_.at(id)) free_.push_back(id);
    }
    return others_.victim(free_.empty() ? candidates : std::span<const ExpertId>(free_), layer);
  }

 private:
  detail::OfExperts<char> kept_;
  AnyPolicy others_;
  std::vector<ExpertId> free_;  // of the last call, kept for its memory
};

static_assert(EvictionPolicy<Lru> && EvictionPolicy<DecayedCounts> && EvictionPolicy<Pinned> &&
              EvictionPolicy<AnyPolicy>);

}  // namespace moe::inline MOE_TARGET::io
