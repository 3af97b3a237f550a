/// @file  What a store of experts would do in a run that was recorded.
#pragma once

#include <algorithm>
#include <cstddef>
#include <limits>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "moe/core/check.hpp"
#include "moe/core/types.hpp"
#include "moe/io/store/policies.hpp"
#include "moe/io/store/trace.hpp"

namespace moe::inline MOE_TARGET::io {

/// Bytes of each expert of each layer: the room that it takes (room_of()), which is what is read. Those of none, or
/// beyond the end (experts that compute nothing), are never read.
using ExpertBytes = std::vector<std::vector<Index>>;

/// Belady's MIN: evicts what will be used last, as only who knows the run can. With experts of one size no policy has
/// more hits. Belady 1966, "A study of replacement algorithms for a virtual-storage computer", IBM Systems Journal 5.
class BeladyMin {
 public:
  /// @param trace  of the run whose calls will follow, all of them
  explicit BeladyMin(const Trace& trace) {
    auto calls = std::make_shared<detail::OfExperts<std::vector<Index>>>();
    std::vector<ExpertId> experts;
    for (std::size_t c = 0; c < trace.calls.size(); ++c) {
      trace.experts_of(trace.calls[c], experts);
      for (const ExpertId& id : experts) (*calls)[id].push_back(Index(c));
    }
    calls_ = std::move(calls);
  }

  void used(std::span<const ExpertId> /*experts*/, Index /*layer*/) { ++call_; }

  ExpertId victim(std::span<const ExpertId> candidates, Index /*layer*/) const {
    return detail::least(candidates, [&](const ExpertId& id) {
      const std::vector<Index>* const calls = calls_->find(id);
      if (calls == nullptr) return -std::numeric_limits<Index>::max();
      const auto next = std::ranges::upper_bound(*calls, call_);
      return next == calls->end() ? -std::numeric_limits<Index>::max() : -*next;
    });
  }

 private:
  std::shared_ptr<const detail::OfExperts<std::vector<Index>>> calls_;  // that use an expert, ascending
  Index call_ = -1;
};

/// What happened in one call of a layer.
struct SimulatedCall {
  Index hits = 0, misses = 0;            // experts
  Index bytes_used = 0, bytes_read = 0;  // the latter of those that missed
  Index evictions = 0;

  /// Another call, or the sum of several.
  SimulatedCall& operator+=(const SimulatedCall& other) {
    hits += other.hits, misses += other.misses;
    bytes_used += other.bytes_used, bytes_read += other.bytes_read;
    evictions += other.evictions;
    return *this;
  }

  /// Experts found in memory, of all that were used; 1 where none was.
  double hit_rate() const { return hits + misses == 0 ? 1 : double(hits) / double(hits + misses); }
};

/// A run, from an empty memory on, as ExpertStore makes it. In each call
///   1. policy.used(its experts, ascending);
///   2. those in memory are hits, and stay until the call ends;
///   3. each other one, in the order of the file, is a miss: while memory has no room for it, policy.victim() of all
///      others in memory goes, but not one that this call uses. Then it is in memory, too.
/// A call whose experts do not fit together computes the hits first and then each miss as it comes; what is computed
/// may go. With experts of one size the order of misses does not matter.
/// Memory is counted in bytes, as if it had no gaps.
/// @param bytes   of the layers of the trace
/// @param memory  for experts
/// @return what happened in each call of the trace
/// @throws std::invalid_argument naming both numbers, if an expert is larger than the memory, or layers are missing.
template <EvictionPolicy P>
std::vector<SimulatedCall> simulate(const Trace& trace, const ExpertBytes& bytes, Index memory, P policy) {
  require_equal(std::ssize(bytes), std::ssize(trace.layer_numbers), "simulate: layers with bytes of experts");
  const auto bytes_of = [&](const ExpertId& id) {
    const auto& layer = bytes[std::size_t(id.layer)];
    return id.expert < std::ssize(layer) ? layer[std::size_t(id.expert)] : 0;
  };
  std::vector<SimulatedCall> calls;
  std::vector<ExpertId> resident, candidates, used, misses;
  detail::OfExperts<char> is_resident;
  Index room = memory;
  for (const Trace::Call& call : trace.calls) {
    SimulatedCall its;
    trace.experts_of(call, used);
    std::erase_if(used, [&](const ExpertId& id) { return bytes_of(id) == 0; });
    policy.used(used, call.layer);
    misses.clear();
    for (const ExpertId& id : used) {
      const Index size = bytes_of(id);
      require(size <= memory, "simulate: memory is " + std::to_string(memory) + " bytes, expected at least " +
                                  std::to_string(size) + ", those of expert " + std::to_string(id.expert));
      its.bytes_used += size;
      if (is_resident.at(id)) continue;
      its.bytes_read += size;
      misses.push_back(id);
    }
    its.misses = std::ssize(misses), its.hits = std::ssize(used) - its.misses;
    const bool fits = its.bytes_used <= memory;
    candidates.clear();
    for (const ExpertId& id : resident) {
      if (!fits || !std::ranges::binary_search(used, id)) candidates.push_back(id);
    }
    for (const ExpertId& id : misses) {
      while (room < bytes_of(id)) {
        const ExpertId victim = policy.victim(candidates, call.layer);
        std::erase(candidates, victim);
        std::erase(resident, victim);
        is_resident[victim] = 0;
        room += bytes_of(victim);
        ++its.evictions;
      }
      resident.push_back(id);
      if (!fits) candidates.push_back(id);
      is_resident[id] = 1;
      room -= bytes_of(id);
    }
    calls.push_back(its);
  }
  return calls;
}

}  // namespace moe::inline MOE_TARGET::io
