/// @file  The assignment of tokens to experts that is best among those where every expert gets as many.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <span>

#include "moe/core/check.hpp"
#include "moe/core/scratch.hpp"
#include "moe/core/types.hpp"
#include "moe/routers/detail/by_expert.hpp"
#include "moe/runtime/workers.hpp"

namespace moe::inline MOE_TARGET {

namespace detail {

/// Finite numbers that ask for the same assignment. A token with a NaN has no wishes: 0 everywhere. ±∞ becomes a number
/// that outweighs all finite scores of the batch together.
template <class Scalar, class Real>
AlignedColumns<Real> finite_scores(const ConstMatrixRef<Scalar>& scores, Workers& workers) {
  constexpr Real too_large = 1e200;  // prices are sums of scores
  Real largest = 0;
  for (Index t = 0; t < scores.cols(); ++t) {
    for (Index e = 0; e < scores.rows(); ++e) {
      const auto size = std::abs(Real(scores(e, t)));
      if (size <= std::numeric_limits<Real>::max()) largest = std::max(largest, std::min(size, too_large));
    }
  }
  const Real infinite = 2 * Real(scores.cols() + 1) * (largest > 0 ? largest : 1);
  auto finite = aligned_columns<Real>(scores.rows(), scores.cols(), workers.shared());
  workers.for_each_band(scores.cols(), items_a_task(scores.rows()), [&](Index first, Index last, Scratch&) {
    for (Index t = first; t < last; ++t) {
      const bool has_nan = scores.col(t).array().isNaN().any();
      for (Index e = 0; e < scores.rows(); ++e) {
        const auto score = Real(scores(e, t));
        finite(e, t) = has_nan             ? 0
                       : std::isinf(score) ? std::copysign(infinite, score)
                                           : std::clamp(score, -too_large, too_large);
      }
    }
  });
  return finite;
}

/// Tokens in the order of how much the choice of expert means to them: who comes late has little to say, and sends few
/// others elsewhere. (Where all tokens rank the experts alike, this is the difference between seconds and
/// milliseconds.)
template <class Real>
std::span<const Index> most_at_stake_first(const AlignedColumns<Real>& scores, Scratch& scratch) {
  struct Stake {
    Real size;
    Index token;
  };
  const Index num_tokens = scores.cols();
  auto* const stakes = scratch.array<Stake>(num_tokens);
  for (Index t = 0; t < num_tokens; ++t) stakes[t] = {scores.col(t).maxCoeff() - scores.col(t).mean(), t};
  std::sort(stakes, stakes + num_tokens,
            [](const Stake& a, const Stake& b) { return a.size > b.size || (a.size == b.size && a.token < b.token); });
  auto* const order = scratch.array<Index>(num_tokens);
  std::transform(stakes, stakes + num_tokens, order, [](const Stake& stake) { return stake.token; });
  return {order, std::size_t(num_tokens)};
}

/// Seats one token after the other, each time along the shortest path to a free seat: the token goes to an expert,
/// which sends one of its tokens on to another expert, and so on, at the least loss of score. (Successive shortest
/// paths with Dijkstra's algorithm; prices keep all lengths ≥ 0. Edmonds & Karp 1972, doi:10.1145/321694.321699;
/// Tomizawa 1971.)
///
/// An expert has ⌊T/E⌋ seats of its own. The T mod E extra seats, at most one to an expert, are held by one more node
/// of the graph, the pool: an expert without one can take it from there, or through there from an expert that has one.
template <class Real>
class SeatFinder {
 public:
  SeatFinder(const AlignedColumns<Real>& scores, Scratch& scratch)
      : num_experts_(scores.rows()),
        seats_(scores.cols() / num_experts_),
        num_extra_(scores.cols() % num_experts_),
        scores_(scores),
        loss_(aligned_columns<Real>(num_nodes(), num_nodes(), scratch)),
        price_(make_row(scratch)),
        no_room_(make_row(scratch)),
        direct_(make_row(scratch)),
        open_(make_row(scratch)),
        unvisited_price_(make_row(scratch)),
        distance_(scratch.array<Real>(num_nodes())),
        visited_(scratch.array<Index>(num_nodes())),
        path_(scratch.array<Index>(num_nodes())),
        num_members_(scratch.array<Index>(num_experts_)),
        members_(scratch.array<Index>(num_experts_ * (seats_ + 1))) {
    std::fill_n(num_members_, num_experts_, Index(0));
    price_.setZero();
    no_room_.head(num_experts_).setConstant(seats_ > 0 ? 0 : infinity);
    no_room_(pool()) = num_extra_ > 0 ? 0 : infinity;
    loss_.setConstant(infinity);
    if (num_extra_ > 0) loss_.row(pool()).head(num_experts_).setZero();
  }

  void seat(Index token) {
    find_distances(token);
    find_path();
    for (Index i = 0; i < num_visited_; ++i) price_(visited_[i]) += nearest_room_ - distance_[visited_[i]];
    move_along_path(token);
  }

  /// The tokens of an expert, in no particular order.
  std::span<const Index> members(Index expert) const {
    return {members_ + expert * (seats_ + 1), std::size_t(num_members_[expert])};
  }

 private:
  static constexpr Real infinity = std::numeric_limits<Real>::infinity();
  using Row = Eigen::Map<Eigen::Array<Real, Eigen::Dynamic, 1>, Eigen::Aligned64>;

  Index pool() const { return num_experts_; }
  Index num_nodes() const { return num_experts_ + 1; }
  Row make_row(Scratch& scratch) const { return {scratch.array<Real>(num_nodes()), num_nodes()}; }

  /// From the token to every node that is no further than the nearest with room. A length is what is lost in score,
  /// at present prices.
  void find_distances(Index token) {
    const auto score = scores_.col(token).array();
    direct_.head(num_experts_) = price_.head(num_experts_) - score;
    direct_(pool()) = infinity;
    direct_ -= direct_.minCoeff();
    open_ = direct_;
    unvisited_price_ = price_;
    for (num_visited_ = 0;; ++num_visited_) {
      const Real nearest = open_.minCoeff();
      nearest_room_ = (open_ + no_room_).minCoeff();
      if (nearest_room_ <= nearest) return;
      const Index node = std::find(open_.data(), open_.data() + num_nodes(), nearest) - open_.data();
      eigen_assert(node < num_nodes() && nearest < infinity);
      visited_[num_visited_] = node;
      distance_[node] = nearest;
      unvisited_price_(node) = open_(node) = infinity;
      open_ = open_.min(loss_.col(node).array() + (nearest - price_(node)) + unvisited_price_);
    }
  }

  /// Back from the nearest room: who was passed on the way is found by its distance.
  void find_path() {
    Index node = 0;
    while (open_(node) + no_room_(node) != nearest_room_) ++node;
    path_length_ = 0;
    for (Index earlier = num_visited_; earlier >= 0;) {
      path_[path_length_++] = node;
      Real shortest = direct_(node);
      Index before = -1;
      for (Index i = 0; i < earlier; ++i) {
        const Index v = visited_[i];
        const Real length = loss_(node, v) + (distance_[v] - price_(v)) + price_(node);
        if (length < shortest) shortest = length, before = i;
      }
      if (before >= 0) node = visited_[before];
      earlier = before;
    }
  }

  void move_along_path(Index token) {
    take_room(path_[0]);
    for (Index i = 0; i + 1 < path_length_; ++i) {
      const Index to = path_[i], from = path_[i + 1];
      if (to == pool() || from == pool()) {
        give_extra_seat(to == pool() ? from : to, to == pool());
      } else {
        const Index mover = least_loss(from, to);
        remove(from, mover);
        add(to, members_of(from)[num_members_[from]]);
      }
    }
    add(path_[path_length_ - 1], token);
  }

  void take_room(Index node) {
    if (node == pool()) {
      if (--num_extra_ == 0) no_room_(node) = infinity;
    } else {
      if (num_members_[node] + 1 - has_extra_seat(node) == seats_) no_room_(node) = infinity;
    }
  }

  bool has_extra_seat(Index expert) const { return loss_(expert, pool()) == 0; }
  void give_extra_seat(Index expert, bool give) {
    loss_(pool(), expert) = give ? infinity : 0;
    loss_(expert, pool()) = give ? 0 : infinity;
  }

  Index* members_of(Index expert) { return members_ + expert * (seats_ + 1); }

  /// Which of its tokens an expert would send to another.
  Index least_loss(Index from, Index to) {
    const auto loss = [&](Index i) { return scores_(from, members_of(from)[i]) - scores_(to, members_of(from)[i]); };
    Index best = 0;
    for (Index i = 1; i < num_members_[from]; ++i) {
      if (loss(i) < loss(best)) best = i;
    }
    return best;
  }

  void add(Index expert, Index token) {
    members_of(expert)[num_members_[expert]++] = token;
    lower_loss(expert, token);
  }

  /// Leaves it just behind the others.
  void remove(Index expert, Index member) {
    std::swap(members_of(expert)[member], members_of(expert)[--num_members_[expert]]);
    loss_.col(expert).head(num_experts_).setConstant(infinity);
    for (const Index token : members(expert)) lower_loss(expert, token);
  }

  void lower_loss(Index expert, Index token) {
    auto loss = loss_.col(expert).head(num_experts_).array();
    loss = loss.min(scores_(expert, token) - scores_.col(token).array());
  }

  Index num_experts_, seats_, num_extra_;
  AlignedColumns<Real> scores_;  // (num_experts × n_tokens)
  AlignedColumns<Real> loss_;    // (to, from): of score, if the expert `from` sends its best suited token to `to`
  Row price_, no_room_;          // of a seat; ∞ where none is free, else 0
  Row direct_, open_, unvisited_price_;
  Real* distance_;
  Index *visited_, *path_;
  Index num_visited_ = 0, path_length_ = 0;
  Real nearest_room_ = 0;
  Index *num_members_, *members_;
};

}  // namespace detail

/// Assigns each token to one expert, such that each expert gets ⌊n_tokens / num_experts⌋ or ⌈n_tokens / num_experts⌉
/// of them, and the sum of their scores is as large as it can be: exactly, but for the rounding of prices in double.
///
/// Each token is seated once, by a search of at most num_experts + 1 steps, so it ends for every input: in
/// O(n_tokens · num_experts · (num_experts + n_tokens)) time at worst, near O(n_tokens · num_experts) where wishes are
/// even. One thread does it. Which of several best assignments is found depends on the scores alone.
/// A token with a NaN has no wishes and is seated where there is room; infinite scores outweigh all finite ones. Holds
/// a copy of the scores in double.
///
/// @param scores  (num_experts × n_tokens), num_experts ≥ 1
/// @param expert  (n_tokens) written
/// @tparam Real  double: a template's parameter so that these expressions cost those alone who call this
/// @throws std::invalid_argument if `expert` has another size.
template <class Scalar, class Real = double>
void assign_balanced(const ConstMatrixRef<Scalar>& scores, std::span<Index> expert, Workers& workers) {
  require_equal(std::ssize(expert), scores.cols(), "assign_balanced: expert.size()");
  if (scores.cols() == 0) return;
  const auto finite = detail::finite_scores<Scalar, Real>(scores, workers);
  detail::SeatFinder<Real> seats(finite, workers.shared());
  for (const Index t : detail::most_at_stake_first<Real>(finite, workers.shared())) seats.seat(t);
  for (Index e = 0; e < scores.rows(); ++e) {
    for (const Index t : seats.members(e)) expert[std::size_t(t)] = e;
  }
}

}  // namespace moe::inline MOE_TARGET
