/// @file  Columns on their way between all ranks.
#pragma once

#include <limits>
#include <type_traits>

#include <mpi.h>

#include "moe/core/check.hpp"
#include "moe/core/types.hpp"
#include "moe/distributed/communicator.hpp"
#include "moe/distributed/handle.hpp"

namespace moe::inline MOE_TARGET::distributed {

/// A number for each rank, as MPI_Alltoallv takes them.
struct CountsOfRanks {
  const int* count;
  const int* first;
};

/// A float or a double.
template <class Scalar>
MPI_Datatype number_type() {
  static_assert(std::is_same_v<Scalar, float> || std::is_same_v<Scalar, double>);
  return std::is_same_v<Scalar, float> ? MPI_FLOAT : MPI_DOUBLE;
}

/// So many bytes as one element of MPI: counts are then those of columns, which stay below 2³¹ where numbers do not.
/// @throws std::invalid_argument if one column has 2³¹ bytes or more.
inline Handle<MPI_Datatype> column_type(Index bytes) {
  require_between(0, bytes, std::numeric_limits<int>::max(), "column_type: bytes");
  MPI_Datatype type = MPI_DATATYPE_NULL;
  check(MPI_Type_contiguous(int(bytes), MPI_BYTE, &type), "MPI_Type_contiguous");
  check(MPI_Type_commit(&type), "MPI_Type_commit");
  return own(type, MPI_Type_free);
}

/// Collective. Sends columns [send_counts.first[r], … + count[r]) to each rank r, and receives likewise; all of this
/// memory is in use until the request is done.
inline MPI_Request start_exchange(const Communicator& comm, MPI_Datatype column, const void* send,
                                  const CountsOfRanks& send_counts, void* receive,
                                  const CountsOfRanks& receive_counts) {
  MPI_Request request = MPI_REQUEST_NULL;
  check(MPI_Ialltoallv(send, send_counts.count, send_counts.first, column, receive, receive_counts.count,
                       receive_counts.first, column, comm.get(), &request),
        "MPI_Ialltoallv");
  return request;
}

}  // namespace moe::inline MOE_TARGET::distributed
