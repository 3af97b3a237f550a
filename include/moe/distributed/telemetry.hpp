/// @file  What all ranks have counted.
#pragma once

#include <chrono>
#include <cstdint>
#include <limits>
#include <span>
#include <type_traits>
#include <vector>

#include <mpi.h>

#include "moe/core/check.hpp"
#include "moe/distributed/agreement.hpp"
#include "moe/distributed/communicator.hpp"
#include "moe/distributed/traffic.hpp"
#include "moe/telemetry/routing_stats.hpp"

namespace moe::inline MOE_TARGET::distributed {

/// Collective. Turns each rank's statistics into those of all ranks together.
/// @throws std::invalid_argument on all ranks if theirs are of another number of experts or other options.
inline void all_reduce(RoutingStats& stats, MPI_Comm comm,
                       std::chrono::milliseconds patience = std::chrono::minutes(10)) {
  const Communicator ranks(comm, patience);
  const Claim claims[] = {{"stats.num_experts()", stats.num_experts()},
                          {"stats.options().score", std::int64_t(stats.options().score)},
                          {"stats.counts_pairs()", stats.counts_pairs()}};
  require_agreement(ranks, claims, "all_reduce");
  const auto merge = [&](std::span<double> values, MPI_Op how) {
    require_between(0, std::ssize(values), std::numeric_limits<int>::max(), "all_reduce: numbers");
    MPI_Request request = MPI_REQUEST_NULL;
    check(MPI_Iallreduce(MPI_IN_PLACE, values.data(), int(values.size()), MPI_DOUBLE, how, ranks.get(), &request),
          "MPI_Iallreduce");
    ranks.wait(request, "merge statistics");
  };
  merge(stats.sums(), MPI_SUM);
  merge(stats.minima(), MPI_MIN);
}

/// Collective. Every rank's traffic, in the order of the ranks.
inline std::vector<Traffic> traffic_of_ranks(const Traffic& own, MPI_Comm comm,
                                             std::chrono::milliseconds patience = std::chrono::minutes(10)) {
  static_assert(std::is_trivially_copyable_v<Traffic>);
  const Communicator ranks(comm, patience);
  std::vector<Traffic> all(std::size_t(ranks.size()), Traffic{});
  MPI_Request request = MPI_REQUEST_NULL;
  check(MPI_Iallgather(&own, sizeof own, MPI_BYTE, all.data(), sizeof own, MPI_BYTE, ranks.get(), &request),
        "MPI_Iallgather");
  ranks.wait(request, "gather traffic");
  return all;
}

}  // namespace moe::inline MOE_TARGET::distributed
