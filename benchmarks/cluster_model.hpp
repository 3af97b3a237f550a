/// @file  The time of a layer whose experts are spread over ranks, from first principles.
#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <vector>

#include "choices.hpp"
#include "moe/core/check.hpp"
#include "moe/core/types.hpp"
#include "moe/distributed/placement.hpp"

namespace moe::bench {

// ------------------------------------------------------------------------------------------------ who does how much

/// What one rank does in one call. Numbers are those of tokens that were looked at, times what these stand for.
struct RankWork {
  double columns_sent = 0, columns_received = 0;  // token columns to and from other ranks: one a token and rank
  double routes_sent = 0, routes_received = 0;    // to and from other ranks
  double own_columns = 0, own_routes = 0;         // that stay
  std::vector<double> tokens;                     // of each expert that it holds, in the order of their numbers

  double columns_to_all() const { return columns_sent + own_columns; }
  double columns_from_all() const { return columns_received + own_columns; }
  double routes_to_all() const { return routes_sent + own_routes; }
  double routes_from_all() const { return routes_received + own_routes; }
};

/// The work of each rank, which has `tokens_a_rank` tokens that choose as `choices` from `first` on do. The copies of
/// an expert take the tokens of a rank in turns, the first turn another one's on each rank: as
/// moe::distributed::address(). Where all ranks together have more than `most` tokens, so many are looked at, as many
/// of each rank, and each of them stands for several.
inline std::vector<RankWork> divide_work(const Choices& choices, Index first, const distributed::Placement& placement,
                                         int num_ranks, Index tokens_a_rank, Index most) {
  struct Copy {
    int rank;
    std::size_t number;  // among its rank's experts
  };
  std::vector<RankWork> ranks(std::size_t(num_ranks), RankWork{});
  std::vector<std::vector<Copy>> copies_of(placement.ranks_of.size());
  for (std::size_t e = 0; e < copies_of.size(); ++e) {
    for (const int rank : placement.ranks_of[e]) {
      auto& tokens = ranks[std::size_t(rank)].tokens;
      copies_of[e].push_back({rank, tokens.size()});
      tokens.push_back(0);
    }
  }
  const Index looked_at = std::min(tokens_a_rank, std::max<Index>(1, most / num_ranks));
  const double stands_for = tokens_a_rank == 0 ? 0 : double(tokens_a_rank) / double(looked_at);
  std::vector<std::size_t> turn(copies_of.size());
  std::vector<int> asked;  // the ranks that a token goes to
  for (int home = 0; home < num_ranks; ++home) {
    RankWork& at_home = ranks[std::size_t(home)];
    std::fill(turn.begin(), turn.end(), std::size_t(home));
    for (Index t = 0; t < looked_at; ++t) {
      asked.clear();
      for (const int e : choices.of(first + home * looked_at + t)) {
        const auto& copies = copies_of[std::size_t(e)];
        const Copy& copy = copies[turn[std::size_t(e)]++ % copies.size()];
        RankWork& there = ranks[std::size_t(copy.rank)];
        there.tokens[copy.number] += stands_for;
        const bool is_new = std::ranges::count(asked, copy.rank) == 0;
        if (is_new) asked.push_back(copy.rank);
        if (copy.rank == home) {
          at_home.own_routes += stands_for;
          at_home.own_columns += is_new * stands_for;
        } else {
          at_home.routes_sent += stands_for;
          there.routes_received += stands_for;
          at_home.columns_sent += is_new * stands_for;
          there.columns_received += is_new * stands_for;
        }
      }
    }
  }
  return ranks;
}

// ------------------------------------------------------------------------------------------------- bytes on the wire

/// What travels for one token.
struct Wire {
  double column = 0;            // bytes of a token's column, and of an answer
  bool summed_answers = false;  // one a column instead of one a route: distributed::Answers::summed

  static constexpr double route = 16;  // bytes: moe::distributed::Order<float>
  static constexpr double parcel = 8;  // bytes that say how much comes: moe::distributed::Parcel

  double answers_sent(const RankWork& rank) const {
    return summed_answers ? rank.columns_received : rank.routes_received;
  }
  double answers_received(const RankWork& rank) const { return summed_answers ? rank.columns_sent : rank.routes_sent; }

  /// What a rank sends to others in one call:
  ///   (columns + answers) · d_model · sizeof(number) + routes · sizeof(route) + 8 · (ranks − 1)
  double bytes_sent(const RankWork& rank, int num_ranks) const {
    return (rank.columns_sent + answers_sent(rank)) * column + rank.routes_sent * route + parcel * (num_ranks - 1);
  }
};

// -------------------------------------------------------------------------------------------------- time of one call

/// Seconds that a rank takes for one expert with so many tokens: straight lines between measured points.
class ExpertTime {
 public:
  struct Point {
    double tokens, seconds;
  };

  /// Beyond the last point time grows as tokens do.
  /// @param points  by rising tokens, from 1 token on
  explicit ExpertTime(std::vector<Point> points) : points_(std::move(points)) {
    require(!points_.empty() && points_.front().tokens == 1, "ExpertTime: points");
  }

  /// An expert whose weights (bytes) are read once, and make so many operations for each token; the slower of the two.
  static ExpertTime from_limits(double bytes, double flops_a_token, double bytes_a_second, double flops_a_second) {
    const double read = bytes / bytes_a_second, compute = flops_a_token / flops_a_second;
    const double knee = std::max(1.0, read / compute);
    return ExpertTime({{1, knee * compute}, {knee, knee * compute}});
  }

  double operator()(double tokens) const {
    if (tokens <= 0) return 0;
    if (tokens <= 1) return points_.front().seconds;
    if (tokens >= points_.back().tokens) return points_.back().seconds * tokens / points_.back().tokens;
    const auto end = std::ranges::find_if(points_, [&](const Point& point) { return point.tokens >= tokens; });
    const Point &a = *(end - 1), &b = *end;
    return a.seconds + (b.seconds - a.seconds) * (tokens - a.tokens) / (b.tokens - a.tokens);
  }

 private:
  std::vector<Point> points_;
};

/// What a rank does by itself.
struct RankSpeed {
  ExpertTime expert;
  double bytes_moved_a_second;  // read and written, where columns are copied and added
};

/// What lies between the ranks.
struct Link {
  double latency = 0;         // seconds from sending a small message until it is there
  double message = 0;         // seconds that a rank is busy with a message, whatever its size
  double bytes_a_second = 0;  // into a rank, and out of it at the same time
};

/// Seconds of one call, part after part; in each the busiest rank counts, as all wait for it.
struct CallTime {
  double experts = 0, moving = 0, exchange = 0;

  double total() const { return experts + moving + exchange; }

  friend CallTime operator+(const CallTime& a, const CallTime& b) {
    return {a.experts + b.experts, a.moving + b.moving, a.exchange + b.exchange};
  }
  friend CallTime operator*(double times, const CallTime& a) {
    return {times * a.experts, times * a.moving, times * a.exchange};
  }
};

struct Model {
  RankSpeed speed;
  Link link;
  Wire wire;
  double column_in_memory = 0;  // bytes: d_model · sizeof(float)
  int shared_cores = 0;         // that ranks are bound to in turns; 0: each rank has its own

  double experts(const RankWork& rank) const {
    double seconds = 0;
    for (const double tokens : rank.tokens) seconds += speed.expert(tokens);
    return seconds;
  }

  /// Columns read or written by the way. A column is read and written to be sent (2). For each route, what arrived is
  /// read, written where the experts find it, and memory for the answer is zeroed (3); to add the answer at home, it is
  /// read, and the sum read and written (3). For summed answers, memory for the sum is zeroed (1 a column), and the sum
  /// is added at home (3 a column). What a rank sends itself is read and written, too (2).
  double moving(const RankWork& rank) const {
    const double own_answers = wire.summed_answers ? rank.own_columns : rank.own_routes;
    const double columns = 2 * rank.columns_to_all() + 2 * (rank.own_columns + own_answers) +
                           (wire.summed_answers ? rank.columns_from_all() + 3 * rank.columns_to_all()
                                                : 3 * rank.routes_from_all() + 3 * rank.routes_to_all());
    return columns * column_in_memory / speed.bytes_moved_a_second;
  }

  /// An exchange of columns: all messages are under way at once, so latency counts once; a rank handles one message to
  /// each other rank by itself; and what goes in and out of the busiest rank passes its link:
  ///   latency + (ranks − 1) · message + bytes / bandwidth
  double exchange_columns(double bytes, int num_ranks) const {
    return link.latency + (num_ranks - 1) * link.message + bytes / link.bytes_a_second;
  }

  /// Three of these, for routes, tokens and answers; and before and after them one of a few bytes, which goes in
  /// ⌈log2 ranks⌉ steps: the numbers of tokens (Bruck's algorithm), and whether all is well (recursive doubling).
  double exchange(const std::vector<RankWork>& ranks) const {
    const int num_ranks = int(ranks.size());
    if (num_ranks == 1) return 0;
    const auto busiest = [&](const auto& of) {
      double most = 0;
      for (const RankWork& rank : ranks) most = std::max(most, of(rank));
      return most;
    };
    const double routes = busiest([](const auto& r) { return std::max(r.routes_sent, r.routes_received); });
    const double columns = busiest([](const auto& r) { return std::max(r.columns_sent, r.columns_received); });
    const double answers =
        busiest([&](const auto& r) { return std::max(wire.answers_sent(r), wire.answers_received(r)); });
    const double steps = double(std::bit_width(unsigned(num_ranks - 1)));
    return exchange_columns(routes * Wire::route, num_ranks) + exchange_columns(columns * wire.column, num_ranks) +
           exchange_columns(answers * wire.column, num_ranks) + 2 * steps * (link.latency + link.message);
  }

  /// Until the last rank is done; of those that share a core one after the other.
  double all_done(const std::vector<double>& seconds) const {
    std::vector<double> core(shared_cores > 0 ? std::size_t(shared_cores) : seconds.size(), 0.0);
    for (std::size_t rank = 0; rank < seconds.size(); ++rank) core[rank % core.size()] += seconds[rank];
    return *std::ranges::max_element(core);
  }

  CallTime operator()(const std::vector<RankWork>& ranks) const {
    std::vector<double> in_experts, in_moving;
    for (const RankWork& rank : ranks) {
      in_experts.push_back(experts(rank));
      in_moving.push_back(moving(rank));
    }
    return {all_done(in_experts), all_done(in_moving), exchange(ranks)};
  }
};

/// Tokens that the experts of the busiest rank have, in even shares: 1 at best, the number of ranks at the worst.
inline double imbalance(const std::vector<RankWork>& ranks) {
  double most = 0, sum = 0;
  for (const RankWork& rank : ranks) {
    most = std::max(most, rank.routes_from_all());
    sum += rank.routes_from_all();
  }
  return sum == 0 ? 1 : most * double(ranks.size()) / sum;
}

}  // namespace moe::bench
