/// @file  What all ranks must say alike.
#pragma once

#include <cstdint>
#include <limits>
#include <map>
#include <span>
#include <sstream>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include <mpi.h>

#include "moe/core/check.hpp"
#include "moe/distributed/communicator.hpp"

namespace moe::inline MOE_TARGET::distributed {

/// A number with the name that an error gives it.
struct Claim {
  std::string name;
  std::int64_t value;
};

/// A rank that has nothing to say of it.
inline constexpr std::int64_t no_opinion = std::numeric_limits<std::int64_t>::min();

/// Collective. Every rank's values: those of rank r are [r · values.size(), (r + 1) · values.size()).
inline std::vector<std::int64_t> gather(const Communicator& comm, std::span<const std::int64_t> values,
                                        std::string_view purpose) {
  std::vector<std::int64_t> all(values.size() * std::size_t(comm.size()));
  MPI_Request request = MPI_REQUEST_NULL;
  const int count = int(values.size());
  check(MPI_Iallgather(values.data(), count, MPI_INT64_T, all.data(), count, MPI_INT64_T, comm.get(), &request),
        purpose);
  comm.wait(request, purpose);
  return all;
}

/// Collective. Every rank's text.
/// @throws std::invalid_argument on all ranks if they have 2³¹ bytes or more together.
inline std::vector<std::string> gather_texts(const Communicator& comm, const std::string& text,
                                             std::string_view purpose) {
  const std::int64_t own[] = {std::ssize(text)};
  const auto sizes = gather(comm, own, purpose);
  std::vector<int> count, first;
  std::int64_t total = 0;
  for (const auto size : sizes) {
    first.push_back(int(total));
    count.push_back(int(size));
    total += size;
    require_between(0, total, std::numeric_limits<int>::max(), "gather_texts: bytes of all ranks");
  }
  std::string all(std::size_t(total), ' ');
  MPI_Request request = MPI_REQUEST_NULL;
  check(MPI_Iallgatherv(text.data(), int(text.size()), MPI_CHAR, all.data(), count.data(), first.data(), MPI_CHAR,
                        comm.get(), &request),
        "MPI_Iallgatherv");
  comm.wait(request, purpose);
  std::vector<std::string> texts;
  for (std::size_t rank = 0; rank < count.size(); ++rank) {
    texts.push_back(all.substr(std::size_t(first[rank]), std::size_t(count[rank])));
  }
  return texts;
}

/// "d_model: 32 on rank 1; 64 on ranks 0, 2"
template <class Value>
std::string who_says_what(const std::string& name, const std::map<Value, std::vector<int>>& ranks_of) {
  std::ostringstream text;
  text << name;
  const char* separator = ": ";
  for (const auto& [value, ranks] : ranks_of) {
    text << separator << value << (ranks.size() == 1 ? " on rank" : " on ranks");
    for (const int rank : ranks) text << (rank == ranks.front() ? " " : ", ") << rank;
    separator = "; ";
  }
  return text.str();
}

/// Collective, with as many claims on each rank.
/// @returns the value of each claim; no_opinion where no rank has one
/// @throws std::invalid_argument, on every rank, naming what differs with the values and the ranks that claim each:
///         "ExpertParallel: ranks disagree on d_model: 32 on rank 1; 64 on ranks 0, 2".
inline std::vector<std::int64_t> require_agreement(const Communicator& comm, std::span<const Claim> claims,
                                                   std::string_view who) {
  std::vector<std::int64_t> values;
  for (const Claim& claim : claims) values.push_back(claim.value);
  const auto all = gather(comm, values, "agree on sizes");

  std::string differences;
  for (std::size_t i = 0; i < claims.size(); ++i) {
    std::map<std::int64_t, std::vector<int>> ranks_of;
    for (int rank = 0; rank < comm.size(); ++rank) {
      const auto value = all[std::size_t(rank) * claims.size() + i];
      if (value != no_opinion) ranks_of[value].push_back(rank);
    }
    values[i] = ranks_of.empty() ? no_opinion : ranks_of.begin()->first;
    if (ranks_of.size() <= 1) continue;
    differences += (differences.empty() ? " " : ", and on ") + who_says_what(claims[i].name, ranks_of);
  }
  if (!differences.empty()) throw std::invalid_argument(std::string(who) + ": ranks disagree on" + differences);
  return values;
}

/// Collective.
/// @throws std::invalid_argument, on every rank, naming the texts and the ranks, if they are not alike.
inline void require_same_text(const Communicator& comm, const std::string& name, const std::string& text,
                              std::string_view who) {
  std::map<std::string, std::vector<int>> ranks_of;
  const auto texts = gather_texts(comm, text, "agree on texts");
  for (int rank = 0; rank < comm.size(); ++rank) ranks_of[texts[std::size_t(rank)]].push_back(rank);
  require(ranks_of.size() == 1, std::string(who) + ": ranks disagree on " + who_says_what(name, ranks_of));
}

}  // namespace moe::inline MOE_TARGET::distributed
