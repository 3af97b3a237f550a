/// @file  A few numbers of each rank, added up.
#pragma once

#include <algorithm>
#include <limits>
#include <span>

#include <mpi.h>

#include "moe/core/check.hpp"
#include "moe/core/scratch.hpp"
#include "moe/core/types.hpp"
#include "moe/distributed/communicator.hpp"

namespace moe::inline MOE_TARGET::distributed {

/// Collective, with as many values on each rank. Turns them into their sums over all ranks, in the order of the ranks:
/// MPI_Allreduce promises no order, and has one for each number of ranks, size and library.
inline void sum_in_order(std::span<double> values, const Communicator& comm, Scratch& scratch) {
  const Index size = std::ssize(values);
  require_between(0, size, std::numeric_limits<int>::max(), "sum_in_order: values.size()");
  auto* const all = scratch.array<double>(size * comm.size());
  MPI_Request request = MPI_REQUEST_NULL;
  check(MPI_Iallgather(values.data(), int(size), MPI_DOUBLE, all, int(size), MPI_DOUBLE, comm.get(), &request),
        "MPI_Iallgather");
  comm.wait(request, "add up numbers");
  std::copy_n(all, size, values.begin());
  for (int rank = 1; rank < comm.size(); ++rank) {
    for (Index i = 0; i < size; ++i) values[std::size_t(i)] += all[rank * size + i];
  }
}

}  // namespace moe::inline MOE_TARGET::distributed
