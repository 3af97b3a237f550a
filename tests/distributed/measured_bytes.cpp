#include "distributed/measured_bytes.hpp"

#include <mpi.h>

namespace moe::test {

long measured_bytes = 0;

namespace {

template <class Count>
void measure(MPI_Datatype type, MPI_Comm comm, const Count& count_for) {
  int bytes = 0, rank = 0, size = 0;
  PMPI_Type_size(type, &bytes);
  PMPI_Comm_rank(comm, &rank);
  PMPI_Comm_size(comm, &size);
  for (int other = 0; other < size; ++other) {
    if (other != rank) measured_bytes += long(bytes) * count_for(other);
  }
}

}  // namespace
}  // namespace moe::test

// The profiling interface of MPI: these stand before the library's own.
extern "C" {

int MPI_Ialltoall(const void* send, int send_count, MPI_Datatype send_type, void* receive, int receive_count,
                  MPI_Datatype receive_type, MPI_Comm comm, MPI_Request* request) {
  moe::test::measure(send_type, comm, [&](int) { return send_count; });
  return PMPI_Ialltoall(send, send_count, send_type, receive, receive_count, receive_type, comm, request);
}

int MPI_Ialltoallv(const void* send, const int* send_counts, const int* send_first, MPI_Datatype send_type,
                   void* receive, const int* receive_counts, const int* receive_first, MPI_Datatype receive_type,
                   MPI_Comm comm, MPI_Request* request) {
  moe::test::measure(send_type, comm, [&](int other) { return send_counts[other]; });
  return PMPI_Ialltoallv(send, send_counts, send_first, send_type, receive, receive_counts, receive_first, receive_type,
                         comm, request);
}
}
