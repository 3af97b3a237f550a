/// @file  The ranks of a benchmark.
#pragma once

#include <algorithm>
#include <array>
#include <chrono>
#include <thread>
#include <type_traits>
#include <vector>

#include <mpi.h>

#include "moe/distributed/communicator.hpp"

namespace moe::bench {

/// All that mpirun has started.
class Ranks {
 public:
  Ranks() : comm_(MPI_COMM_WORLD, std::chrono::minutes(10)) {
    std::array<char, MPI_MAX_PROCESSOR_NAME> name{};
    int length = 0;
    distributed::check(MPI_Get_processor_name(name.data(), &length), "MPI_Get_processor_name");
    const auto names = of_all(name);
    on_this_machine_ = static_cast<int>(std::count(names.begin(), names.end(), name));
  }

  int rank() const { return comm_.rank(); }
  int size() const { return comm_.size(); }
  const distributed::Communicator& comm() const { return comm_; }
  int on_this_machine() const { return on_this_machine_; }

  /// Collective: what each rank has, in the order of the ranks. Who waits for the others sleeps, so that one which
  /// works alone has its machine to itself.
  template <class T>
  std::vector<T> of_all(const T& own) const {
    static_assert(std::is_trivially_copyable_v<T>);
    std::vector<T> all(static_cast<std::size_t>(size()));
    MPI_Request request = MPI_REQUEST_NULL;
    distributed::check(MPI_Ibarrier(comm_.get(), &request), "MPI_Ibarrier");
    for (int done = 0; !done; std::this_thread::sleep_for(std::chrono::microseconds(100))) {
      distributed::check(MPI_Test(&request, &done, MPI_STATUS_IGNORE), "MPI_Test");
    }
    distributed::check(
        MPI_Iallgather(&own, sizeof own, MPI_BYTE, all.data(), sizeof own, MPI_BYTE, comm_.get(), &request),
        "MPI_Iallgather");
    comm_.wait(request, "tell what each has");
    return all;
  }

  /// Collective: all ranks go on at the same time.
  void meet() const { of_all(0); }

  /// Collective: the largest of all.
  template <class T>
  T max(T own) const {
    const auto all = of_all(own);
    return *std::max_element(all.begin(), all.end());
  }

 private:
  distributed::Communicator comm_;
  int on_this_machine_ = 1;
};

}  // namespace moe::bench
