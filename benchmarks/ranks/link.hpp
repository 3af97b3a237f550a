/// @file  What lies between these ranks, measured.
#pragma once

#include <algorithm>
#include <cstddef>
#include <utility>
#include <vector>

#include <mpi.h>

#include "cluster_model.hpp"
#include "moe/distributed/communicator.hpp"
#include "moe/distributed/exchange.hpp"
#include "ranks.hpp"
#include "timing.hpp"

namespace moe::bench {

/// Collective. Seconds of f, which all ranks begin together, until the last of them is done.
template <class F>
double seconds_on_all(const Ranks& ranks, const F& f) {
  ranks.meet();
  return ranks.max(seconds_of(f));
}

/// Collective. The median of that, for `budget` seconds, but five times at least and 500 at most.
template <class F>
double median_on_all(const Ranks& ranks, double budget, const F& f) {
  std::vector<double> seconds;
  for (double spent = 0; seconds.size() < 5 || (spent < budget && seconds.size() < 500); spent += seconds.back()) {
    seconds.push_back(seconds_on_all(ranks, f));
  }
  return median(seconds);
}

namespace detail {

/// So many columns from each rank to each other, as ExpertParallel sends them.
class Columns {
 public:
  Columns(const Ranks& ranks, Index bytes, int columns)
      : ranks_(ranks), type_(distributed::column_type(bytes)), count_(std::size_t(ranks.size()), columns) {
    count_[std::size_t(ranks.rank())] = 0;
    int all = 0;
    for (const int count : count_) first_.push_back(std::exchange(all, all + count));
    sent_.resize(std::size_t(all) * std::size_t(bytes));
    received_.resize(sent_.size());
  }

  void exchange() {
    const distributed::CountsOfRanks counts{count_.data(), first_.data()};
    auto request = distributed::start_exchange(ranks_.comm(), *type_, sent_.data(), counts, received_.data(), counts);
    ranks_.comm().wait(request, "measure the link");
  }

 private:
  const Ranks& ranks_;
  distributed::Handle<MPI_Datatype> type_;
  std::vector<int> count_, first_;
  std::vector<char> sent_, received_;
};

/// A byte that goes there and back so often between ranks 0 and 1.
inline void ping_pong(const Ranks& ranks, int times) {
  if (ranks.rank() > 1) return;
  const int other = 1 - ranks.rank();
  for (int turn = 0; turn < 2 * times; ++turn) {
    char byte = 0;
    MPI_Request request = MPI_REQUEST_NULL;
    if (turn % 2 == ranks.rank()) {
      distributed::check(MPI_Isend(&byte, 1, MPI_CHAR, other, 0, ranks.comm().get(), &request), "MPI_Isend");
    } else {
      distributed::check(MPI_Irecv(&byte, 1, MPI_CHAR, other, 0, ranks.comm().get(), &request), "MPI_Irecv");
    }
    ranks.comm().wait(request, "measure the link");
  }
}

}  // namespace detail

/// Collective. Latency of a ping-pong; a message's cost of exchanges of 16 bytes; bandwidth of exchanges of so many
/// columns with each other rank (many enough that latency does not count).
inline Link measure_link(const Ranks& ranks, Index column_bytes, Index columns) {
  if (ranks.size() == 1) return {};
  const double others = ranks.size() - 1;
  constexpr int times = 200;
  Link link{.latency = median_on_all(ranks, 0.1, [&] { detail::ping_pong(ranks, times); }) / (2 * times)};
  detail::Columns small(ranks, 16, 1), large(ranks, column_bytes, int(std::max<Index>(columns, 1)));
  link.message = std::max(0.0, median_on_all(ranks, 0.1, [&] { small.exchange(); }) - link.latency) / others;
  const double seconds = median_on_all(ranks, 0.3, [&] { large.exchange(); });
  link.bytes_a_second = others * double(std::max<Index>(columns, 1) * column_bytes) / seconds;
  return link;
}

}  // namespace moe::bench
