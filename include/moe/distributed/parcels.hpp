/// @file  What travels between this rank and every rank.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

#include "moe/core/check.hpp"
#include "moe/core/dispatch.hpp"
#include "moe/core/scratch.hpp"
#include "moe/core/types.hpp"
#include "moe/distributed/exchange.hpp"
#include "moe/distributed/placement.hpp"
#include "moe/runtime/workers.hpp"

namespace moe::inline MOE_TARGET::distributed {

/// Columns of tokens in one chunk between two ranks, and the slots that they serve: a column travels once, however many
/// of the receiver's experts ask for it.
struct Parcel {
  int columns = 0;
  int slots = 0;
};

/// The parcels from this rank to every rank, or from every rank to this one: rank by rank, a rank's chunks side by
/// side. A view of memory in a scratch.
class Parcels {
 public:
  /// Empty ones; they lie in the scratch until that is reset.
  Parcels(int num_ranks, int num_chunks, Scratch& scratch)
      : num_ranks_(num_ranks),
        num_chunks_(num_chunks),
        parcels_(scratch.array<Parcel>(num_ranks * num_chunks)),
        first_(scratch.array<Parcel>(num_ranks * num_chunks + 1)) {
    std::fill_n(parcels_, num_ranks * num_chunks, Parcel{});
  }

  int num_ranks() const { return num_ranks_; }
  int num_chunks() const { return num_chunks_; }
  Parcel* data() const { return parcels_; }  ///< Rank by rank, a rank's chunks side by side.
  /// To or from a rank, in a chunk.
  Parcel& operator()(int rank, int chunk) const { return parcels_[rank * num_chunks_ + chunk]; }

  /// Where a parcel's columns and slots begin; known after place().
  const Parcel& first(int rank, int chunk) const { return first_[rank * num_chunks_ + chunk]; }
  /// All of them together; known after place().
  const Parcel& total() const { return first_[num_ranks_ * num_chunks_]; }

  /// Of all ranks but this one.
  Parcel total_without(int rank) const {
    Parcel sum = total();
    for (int chunk = 0; chunk < num_chunks_; ++chunk) {
      sum.columns -= (*this)(rank, chunk).columns;
      sum.slots -= (*this)(rank, chunk).slots;
    }
    return sum;
  }

  /// @throws std::invalid_argument if all together have 2³¹ slots or more: the numbers of MPI end there.
  void place() const {
    Index slots = 0;
    first_[0] = {};
    for (int i = 0; i < num_ranks_ * num_chunks_; ++i) {
      slots += parcels_[i].slots;
      require_between(0, slots, std::numeric_limits<int>::max(), "ExpertParallel: routes to one rank");
      first_[i + 1] = {first_[i].columns + parcels_[i].columns, int(slots)};
    }
  }

  /// use(first of its parcel, i) for each of the columns or slots of one chunk.
  template <class F>
  void for_each(int Parcel::* what, int chunk, Workers& workers, const F& use) const {
    workers.for_each(num_ranks_, [&](Index rank, Scratch&) {
      const Parcel& begin = first(int(rank), chunk);
      for (int i = begin.*what; i < begin.*what + (*this)(int(rank), chunk).*what; ++i) use(begin, i);
    });
  }

  /// Parcel::columns or Parcel::slots of one chunk.
  CountsOfRanks counts(int Parcel::* what, int chunk, Scratch& scratch) const {
    auto *const count = scratch.array<int>(num_ranks_), *const begin = scratch.array<int>(num_ranks_);
    for (int rank = 0; rank < num_ranks_; ++rank) {
      count[rank] = (*this)(rank, chunk).*what;
      begin[rank] = first(rank, chunk).*what;
    }
    return {count, begin};
  }

  /// The slots of all chunks.
  CountsOfRanks all_slots(Scratch& scratch) const {
    auto *const count = scratch.array<int>(num_ranks_), *const begin = scratch.array<int>(num_ranks_);
    for (int rank = 0; rank < num_ranks_; ++rank) {
      begin[rank] = first(rank, 0).slots;
      count[rank] = first_[(rank + 1) * num_chunks_].slots - begin[rank];
    }
    return {count, begin};
  }

 private:
  int num_ranks_, num_chunks_;
  Parcel* parcels_;
  Parcel* first_;
};

/// What a slot asks of the rank that holds its expert.
template <class Scalar>
struct Order {
  std::int32_t expert;  // as that rank numbers its own
  std::int32_t column;  // of its parcel
  Scalar weight;        // the route's
  WeightOn weight_on;
};

/// A plan, addressed: a view of memory in a scratch.
template <class Scalar>
struct Outgoing {
  Parcels parcels;
  Index* token;           // of each column, in the order of the parcels
  Order<Scalar>* orders;  // of each slot, in the order of the parcels
  Index* place;           // where each slot of the plan is among them
};

/// An expert on a rank, one of its copies.
struct Held {
  Index expert;
  int copy, copies;
};

/// What each rank holds, in the order in which it numbers its experts.
inline std::vector<std::vector<Held>> holdings(const Placement& placement, int num_ranks) {
  std::vector<std::vector<Held>> held_by(std::size_t(num_ranks), std::vector<Held>{});
  for (Index e = 0; e < placement.num_experts(); ++e) {
    const auto& ranks = placement.ranks_of[std::size_t(e)];
    for (std::size_t copy = 0; copy < ranks.size(); ++copy) {
      held_by[std::size_t(ranks[copy])].push_back({e, int(copy), int(ranks.size())});
    }
  }
  return held_by;
}

/// Which copies of an expert take its slots.
enum class Copies {
  all,    // in turns, the first turn another one's on each rank
  first,  // that on the first of its ranks, which so has all tokens of the expert
};

/// Cuts the tokens into chunks of neighbours, and each chunk into a parcel for each rank.
template <class Scalar>
Outgoing<Scalar> address(const DispatchPlan<Scalar>& plan, const std::vector<std::vector<Held>>& held_by, Copies which,
                         int own_rank, Index num_tokens, int num_chunks, Scratch& scratch) {
  require_between(0, plan.num_slots(), std::numeric_limits<int>::max(), "ExpertParallel: routes of one rank");
  const int num_ranks = int(held_by.size());
  const auto chunk_of = [&](Index token) { return int(token * num_chunks / num_tokens); };
  const auto for_each_slot = [&](int rank, const auto& use) {
    const auto& held = held_by[std::size_t(rank)];
    for (std::size_t i = 0; i < held.size(); ++i) {
      if (which == Copies::first && held[i].copy > 0) continue;
      const Index expert = held[i].expert, copy = held[i].copy, copies = which == Copies::first ? 1 : held[i].copies;
      const Index first = plan.first(expert), turn = (copy + copies - own_rank % copies) % copies;
      for (Index s = first + turn; s < first + plan.count(expert); s += copies) use(s, std::int32_t(i));
    }
  };

  const Parcels parcels(num_ranks, num_chunks, scratch);
  auto* const asked_by = scratch.array<int>(num_tokens);  // the last rank that a token was found to go to
  std::fill_n(asked_by, num_tokens, -1);
  for (int rank = 0; rank < num_ranks; ++rank) {
    for_each_slot(rank, [&](Index s, std::int32_t) {
      const Index t = plan.token[std::size_t(s)];
      Parcel& parcel = parcels(rank, chunk_of(t));
      ++parcel.slots;
      if (asked_by[t] != rank) ++parcel.columns;
      asked_by[t] = rank;
    });
  }
  parcels.place();

  const Outgoing<Scalar> out{parcels, scratch.array<Index>(parcels.total().columns),
                             scratch.array<Order<Scalar>>(plan.num_slots()), scratch.array<Index>(plan.num_slots())};
  const Parcels filled(num_ranks, num_chunks, scratch);
  auto* const column_of = scratch.array<std::int32_t>(num_tokens);  // in the parcel for the rank at hand
  std::fill_n(asked_by, num_tokens, -1);
  for (int rank = 0; rank < num_ranks; ++rank) {
    for_each_slot(rank, [&](Index s, std::int32_t expert) {
      const Index t = plan.token[std::size_t(s)];
      const Parcel& first = parcels.first(rank, chunk_of(t));
      Parcel& full = filled(rank, chunk_of(t));
      if (asked_by[t] != rank) {
        asked_by[t] = rank;
        column_of[t] = full.columns++;
        out.token[first.columns + column_of[t]] = t;
      }
      const int place = first.slots + full.slots++;
      out.orders[place] = {expert, column_of[t], plan.weight[std::size_t(s)], plan.weight_on};
      out.place[s] = place;
    });
  }
  return out;
}

/// Where the sums of ranks belong: each to the token whose column was sent.
template <class Scalar>
DispatchPlan<Scalar> plan_columns(const Outgoing<Scalar>& out) {
  DispatchPlan<Scalar> plan;
  plan.token = {out.token, std::size_t(out.parcels.total().columns)};
  plan.weight_on = WeightOn::input;  // weighted already
  return plan;
}

/// What travels back to a token's rank.
enum class Answers {
  each,    // every expert's, to be added at home
  summed,  // weight · answer, summed over a rank's experts: fewer, but not the bits of one process
};

/// The orders of one chunk from all ranks, grouped by expert; inside an expert rank by rank, each in its own order. The
/// route of a slot is its place among all orders, and so is its token; or, for sums, the column that it is of.
/// @param num_experts  of this rank
/// @throws std::invalid_argument if weights count on the input for some of them, and on the output for others.
template <class Scalar>
DispatchPlan<Scalar> plan_orders(const Parcels& parcels, const Order<Scalar>* orders, int chunk, Index num_experts,
                                 Answers answers, Scratch& scratch) {
  const auto for_each_order = [&](const auto& use) {
    for (int rank = 0; rank < parcels.num_ranks(); ++rank) {
      const Parcel& first = parcels.first(rank, chunk);
      for (int i = first.slots; i < first.slots + parcels(rank, chunk).slots; ++i) use(i, first.columns);
    }
  };
  auto* const offset = scratch.array<Index>(num_experts + 2);  // offset[e + 1] walks from first(e) to first(e + 1)
  std::fill_n(offset, num_experts + 2, Index(0));
  for_each_order([&](int i, int) { ++offset[orders[i].expert + 2]; });
  for (Index e = 1; e < num_experts + 2; ++e) offset[e] += offset[e - 1];

  const Index slots = offset[num_experts + 1];
  auto* const token = scratch.array<Index>(slots);
  auto* const weight = scratch.array<Scalar>(slots);
  auto* const route = scratch.array<Index>(slots);
  Index on_input = 0;
  for_each_order([&](int i, int first_column) {
    const Index slot = offset[orders[i].expert + 1]++;
    token[slot] = answers == Answers::summed ? first_column + orders[i].column : i;
    weight[slot] = orders[i].weight;
    route[slot] = i;
    on_input += orders[i].weight_on == WeightOn::input;
  });
  if (on_input > 0) require_equal(on_input, slots, "ExpertParallel: routes to one rank with weights on the input");
  const auto size = std::size_t(slots);
  return {{offset, std::size_t(num_experts) + 1},
          {token, size},
          {weight, size},
          {route, size},
          on_input > 0 ? WeightOn::input : WeightOn::output};
}

/// The same plan, whose answers are weighted elsewhere.
template <class Scalar>
DispatchPlan<Scalar> without_output_weights(DispatchPlan<Scalar> plan, Scratch& scratch) {
  if (plan.weight_on == WeightOn::input) return plan;
  auto* const ones = scratch.array<Scalar>(plan.num_slots());
  std::fill_n(ones, plan.num_slots(), Scalar(1));
  plan.weight = {ones, plan.weight.size()};
  plan.weight_on = WeightOn::input;
  return plan;
}

}  // namespace moe::inline MOE_TARGET::distributed
