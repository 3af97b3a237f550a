/// @file  An error of one rank as an error of all.
#pragma once

#include <exception>
#include <stdexcept>
#include <string>

#include <mpi.h>

#include "moe/distributed/communicator.hpp"

namespace moe::inline MOE_TARGET::distributed {

/// Keeps what is thrown on this rank, until all ranks are ready to hear of it.
class SharedError {
 public:
  explicit SharedError(const Communicator& comm) : comm_(comm) {}  ///< Nothing has failed yet.

  /// Calls f; after an error no more.
  template <class F>
  void run(const F& f) {
    if (error_) return;
    try {
      f();
    } catch (...) {
      error_ = std::current_exception();
    }
  }

  /// Collective: begins to ask the others. Exchanges that are on their way stay so.
  void ask() {
    failed_rank_ = error_ ? comm_.rank() : none;
    check(MPI_Iallreduce(MPI_IN_PLACE, &failed_rank_, 1, MPI_INT, MPI_MAX, comm_.get(), &request_), "MPI_Iallreduce");
  }

  /// Collective, after ask(); when nothing else is on its way.
  /// @throws what this rank kept; if only others did, std::runtime_error "rank 2: <what the last of them says>".
  void rethrow() {
    comm_.wait(request_, "say that all is well");
    if (failed_rank_ == none) return;
    std::string message = comm_.rank() == failed_rank_ ? what() : "";
    long size = long(message.size());
    broadcast(&size, 1, MPI_LONG);
    message.resize(std::size_t(size));
    broadcast(message.data(), int(size), MPI_CHAR);
    if (error_) std::rethrow_exception(error_);
    throw std::runtime_error("rank " + std::to_string(failed_rank_) + ": " + message);
  }

 private:
  static constexpr int none = -1;

  std::string what() const {
    try {
      std::rethrow_exception(error_);
    } catch (const std::exception& error) {
      return error.what();
    } catch (...) {
      return "an exception that is no std::exception";
    }
  }

  void broadcast(void* data, int count, MPI_Datatype type) {
    check(MPI_Ibcast(data, count, type, failed_rank_, comm_.get(), &request_), "MPI_Ibcast");
    comm_.wait(request_, "hear of an error");
  }

  const Communicator& comm_;
  std::exception_ptr error_;
  int failed_rank_ = none;
  MPI_Request request_ = MPI_REQUEST_NULL;
};

/// Collective. Calls f on every rank; if it throws on one, all throw as SharedError says.
template <class F>
void run_together(const Communicator& comm, const F& f) {
  SharedError error(comm);
  error.run(f);
  error.ask();
  error.rethrow();
}

}  // namespace moe::inline MOE_TARGET::distributed
