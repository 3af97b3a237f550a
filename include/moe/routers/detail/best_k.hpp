/// @file  What is best, of numbers that may be none.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include "moe/core/scratch.hpp"
#include "moe/core/types.hpp"
#include "moe/routers/detail/by_expert.hpp"
#include "moe/runtime/workers.hpp"

namespace moe::inline MOE_TARGET {

/// What a score ranks as: itself, or −∞ if it is a NaN.
template <class Scalar>
Scalar rank_of(Scalar score) {
  return std::isnan(score) ? -std::numeric_limits<Scalar>::infinity() : score;
}

/// Whether item a goes before b: the larger rank first, of equal ranks the lower index.
template <class Scalar>
bool ranks_before(Scalar rank_of_a, Index a, Scalar rank_of_b, Index b) {
  return rank_of_a != rank_of_b ? rank_of_a > rank_of_b : a < b;
}

/// Keeps the k best of what it is shown, without sorting the rest: best first. Of equal ranks the one
/// offered first wins. One comparison an item once k are held.
template <class Scalar>
class BestK {
 public:
  BestK() = default;  ///< Of none.
  BestK(Scratch& scratch, Index k) : BestK(k, scratch.array<Index>(k), scratch.array<Scalar>(k)) {}
  BestK(Index k, Index* items, Scalar* ranks) : k_(k), items_(items), ranks_(ranks) {}

  void clear() { size_ = 0; }

  void offer(Index item, Scalar rank) {
    rank = rank_of(rank);
    if (size_ == k_ && !(rank > ranks_[k_ - 1])) return;
    Index place = size_ < k_ ? size_++ : k_ - 1;
    for (; place > 0 && rank > ranks_[place - 1]; --place) {
      items_[place] = items_[place - 1];
      ranks_[place] = ranks_[place - 1];
    }
    items_[place] = item;
    ranks_[place] = rank;
  }

  Index size() const { return size_; }
  const Index* items() const { return items_; }
  const Scalar* ranks() const { return ranks_; }

 private:
  Index k_ = 0, size_ = 0;
  Index* items_ = nullptr;
  Scalar* ranks_ = nullptr;
};

/// The k experts of largest rank(e, t) for each token t, best first, as BestK has it: (k × n_tokens), column by column,
/// in memory of the workers.
template <class Scalar, class Rank>
const Index* best_experts(Index num_experts, Index num_tokens, Index k, Workers& workers, const Rank& rank) {
  auto* const expert = workers.shared().array<Index>(k * num_tokens);
  workers.for_each_band(num_tokens, items_a_task(num_experts), [&](Index first, Index last, Scratch& scratch) {
    BestK<Scalar> best(scratch, k);
    for (Index t = first; t < last; ++t) {
      best.clear();
      for (Index e = 0; e < num_experts; ++e) best.offer(e, rank(e, t));
      std::copy_n(best.items(), k, expert + t * k);
    }
  });
  return expert;
}

}  // namespace moe::inline MOE_TARGET
