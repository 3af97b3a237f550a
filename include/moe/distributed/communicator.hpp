/// @file  The ranks that work together.
#pragma once

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <string_view>
#include <thread>

#include <mpi.h>

#include "moe/distributed/handle.hpp"

namespace moe::inline MOE_TARGET::distributed {

/// @throws std::runtime_error naming the call, if this is not MPI_SUCCESS.
inline void check(int code, std::string_view call) {
  if (code == MPI_SUCCESS) return;
  char text[MPI_MAX_ERROR_STRING];
  int length = 0;
  MPI_Error_string(code, text, &length);
  throw std::runtime_error(std::string(call) + ": " + std::string(text, std::size_t(length)));
}

/// Says on stderr which rank has met what, and ends all ranks: for where no exception could reach them.
[[noreturn]] inline void end_all_ranks(MPI_Comm comm, std::string_view message) {
  int rank = 0, size = 0;
  MPI_Comm_rank(comm, &rank);
  MPI_Comm_size(comm, &size);
  std::fprintf(stderr, "moe: rank %d of %d: %.*s\n", rank, size, int(message.size()), message.data());
  std::fflush(stderr);
  MPI_Abort(comm, EXIT_FAILURE);
  std::abort();  // where MPI_Abort returns
}

/// A communicator with a context of its own, so that its messages meet no others. Copies share it. All calls of MPI
/// that wait for other ranks pass through wait(), so that none waits for ever.
class Communicator {
 public:
  /// Collective: all ranks of `comm` call it.
  /// @param patience  how long a rank waits for the others, before it ends all
  Communicator(MPI_Comm comm, std::chrono::milliseconds patience) : patience_(patience) {
    MPI_Comm its = MPI_COMM_NULL;
    MPI_Request request = MPI_REQUEST_NULL;
    check(MPI_Comm_rank(comm, &rank_), "MPI_Comm_rank");
    check(MPI_Comm_size(comm, &size_), "MPI_Comm_size");
    check(MPI_Comm_idup(comm, &its, &request), "MPI_Comm_idup");
    wait(request, "begin", comm);
    check(MPI_Comm_set_errhandler(its, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler");
    comm_ = own(its, MPI_Comm_free);
  }

  MPI_Comm get() const { return *comm_; }  ///< For calls of MPI.
  int rank() const { return rank_; }       ///< Of this process, from 0.
  int size() const { return size_; }       ///< How many ranks there are.

  /// Until it is done; or, after so long that another rank must be lost, ends all ranks with a message.
  /// @param purpose  what the ranks meet for: "waited 600000 ms for other ranks to <purpose>"
  void wait(MPI_Request& request, std::string_view purpose) const { wait(request, purpose, *comm_); }

 private:
  void wait(MPI_Request& request, std::string_view purpose, MPI_Comm comm) const {
    using Clock = std::chrono::steady_clock;
    const auto end = Clock::now() + patience_;
    for (int done = 0;;) {
      for (int i = 0; i < 100; ++i) {
        check(MPI_Test(&request, &done, MPI_STATUS_IGNORE), purpose);
        if (done) return;
      }
      if (Clock::now() > end) {
        end_all_ranks(comm, "waited " + std::to_string(patience_.count()) + " ms for other ranks to " +
                                std::string(purpose) + ", and ends them all");
      }
      std::this_thread::yield();
    }
  }

  int rank_ = 0, size_ = 0;
  std::chrono::milliseconds patience_;
  Handle<MPI_Comm> comm_;
};

}  // namespace moe::inline MOE_TARGET::distributed
