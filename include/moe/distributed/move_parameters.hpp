/// @file  Parameters from the ranks that have them to those that shall.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <map>
#include <sstream>
#include <string>
#include <vector>

#include <mpi.h>

#include "moe/core/check.hpp"
#include "moe/core/parameters.hpp"
#include "moe/distributed/agreement.hpp"
#include "moe/distributed/communicator.hpp"

namespace moe::inline MOE_TARGET::distributed {

namespace detail {

/// A parameter of some rank.
struct RemoteParameter {
  std::string name;
  std::int64_t bytes;
  int rank;
  bool can_be_sent, can_be_written;
};

/// Collective. The lists of all ranks, rank by rank.
inline std::vector<RemoteParameter> gather(const Communicator& comm, const std::vector<AnyParameter>& own) {
  std::ostringstream text;
  for (const auto& p : own) {
    text << p.bytes() << ' ' << (p.data != nullptr) << ' ' << (p.to_write != nullptr) << ' ' << p.name << '\n';
  }
  std::vector<RemoteParameter> all;
  const auto texts = gather_texts(comm, text.str(), "say what parameters each has");
  for (int rank = 0; rank < comm.size(); ++rank) {
    std::istringstream lines(texts[std::size_t(rank)]);
    for (RemoteParameter p; lines >> p.bytes >> p.can_be_sent >> p.can_be_written >> std::ws;) {
      std::getline(lines, p.name);
      p.rank = rank;
      all.push_back(p);
    }
  }
  return all;
}

/// Which of the ranks that have it a parameter comes from: itself, or else ranks that want it ask them in turns.
/// @throws std::invalid_argument naming it and the ranks, if it cannot come.
inline const RemoteParameter& source_of(const RemoteParameter& wanted, const std::vector<RemoteParameter>& holders) {
  const std::string who = "move_parameters: " + wanted.name, rank = "rank " + std::to_string(wanted.rank);
  require(!holders.empty(), who + " is wanted by " + rank + ", and no rank has it");
  const auto own = std::ranges::find(holders, wanted.rank, &RemoteParameter::rank);
  const auto& source = own != holders.end() ? *own : holders[std::size_t(wanted.rank) % holders.size()];
  const std::string way = who + ", from rank " + std::to_string(source.rank) + " to " + rank + ": ";
  require(source.can_be_sent, way + "does not lie in one piece");
  require(wanted.can_be_written, way + "is mapped there: it cannot be written");
  require_equal(source.bytes, wanted.bytes, way + "bytes");
  return source;
}

/// With MPI's counts, which end at 2³¹.
template <class Start>
void in_pieces(std::int64_t bytes, const Start& start) {
  constexpr std::int64_t most = std::int64_t(1) << 30;
  for (std::int64_t first = 0; first < bytes; first += most) start(first, int(std::min(most, bytes - first)));
}

}  // namespace detail

/// Collective. Each parameter of `to` becomes the one of the same name in `from`, on whatever rank that is. Where
/// several ranks have it, theirs are taken to be alike. A list may be empty, and hold parameters of any types.
///   move_parameters(all_parameters(old_layer), all_parameters(new_layer), MPI_COMM_WORLD);
/// @throws std::invalid_argument on all ranks, naming the parameter and the ranks, if no rank has one that is wanted,
///         or wants one that there is; its size differs, or it is mapped where it should be written; then nothing has
///         been written.
inline void move_parameters(const std::vector<AnyParameter>& from, const std::vector<AnyParameter>& to, MPI_Comm comm,
                            std::chrono::milliseconds patience = std::chrono::minutes(10)) {
  const Communicator ranks(comm, patience);
  std::map<std::string, std::vector<detail::RemoteParameter>> holders;
  for (const auto& p : detail::gather(ranks, from)) holders[p.name].push_back(p);
  const auto wanted = detail::gather(ranks, to);
  std::vector<int> source;
  for (const auto& p : wanted) source.push_back(detail::source_of(p, holders[p.name]).rank);
  for (const auto& p : wanted) holders.erase(p.name);
  for (const auto& [name, its] : holders) {
    require(false, "move_parameters: " + name + " of rank " + std::to_string(its.front().rank) +
                       " is wanted by no rank: it would be lost");
  }

  const auto own = [](const std::vector<AnyParameter>& list, const std::string& name) {
    return std::ranges::find(list, name, &AnyParameter::name);
  };
  std::vector<MPI_Request> requests;  // messages between two ranks keep their order
  for (std::size_t i = 0; i < wanted.size(); ++i) {
    const auto& [name, bytes, rank, can_be_sent, can_be_written] = wanted[i];
    if (source[i] == ranks.rank() && rank == ranks.rank()) {
      std::memmove(own(to, name)->to_write, own(from, name)->data, std::size_t(bytes));
    } else if (source[i] == ranks.rank()) {
      detail::in_pieces(bytes, [&, to_rank = rank, data = own(from, name)->data](std::int64_t first, int size) {
        check(MPI_Isend(data + first, size, MPI_BYTE, to_rank, 0, ranks.get(), &requests.emplace_back()), "MPI_Isend");
      });
    } else if (rank == ranks.rank()) {
      detail::in_pieces(bytes, [&, its_rank = source[i], data = own(to, name)->to_write](std::int64_t first, int size) {
        check(MPI_Irecv(data + first, size, MPI_BYTE, its_rank, 0, ranks.get(), &requests.emplace_back()), "MPI_Irecv");
      });
    }
  }
  for (MPI_Request& request : requests) ranks.wait(request, "move parameters");
}

}  // namespace moe::inline MOE_TARGET::distributed
