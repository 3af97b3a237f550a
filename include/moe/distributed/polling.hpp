/// @file  An executor that lets MPI move data while it works.
#pragma once

#include <thread>
#include <utility>

#include <mpi.h>

#include "moe/core/check.hpp"
#include "moe/core/concepts.hpp"
#include "moe/core/task.hpp"
#include "moe/core/types.hpp"

namespace moe::inline MOE_TARGET::distributed {

/// Another executor, with work cut into smaller pieces: after each of its own, the thread that calls the layer calls
/// MPI, which moves what is on its way. For chunks (ExpertParallelOptions) over links whose data moves only while MPI
/// is called, as with Open MPI over TCP. (Where that thread has no share in the work, as with some pools, nothing is
/// called.)
///   layer.forward(x, y, workspace, moe::distributed::Polling(moe::OpenMp()));
template <Executor X>
class Polling {
 public:
  /// @param pieces  of a worker's share of a matrix
  /// @throws std::invalid_argument unless pieces ≥ 1.
  explicit Polling(X executor, Index pieces = 4) : executor_(std::move(executor)), pieces_(pieces) {
    require_at_least(1, pieces, "Polling: pieces");
  }

  Index workers() const { return pieces_ * executor_.workers(); }

  /// Runs task(i, worker) for each i in [0, n), in pieces; the calling thread polls between its own.
  void for_each(Index n, const Task& task) const {
    const auto caller = std::this_thread::get_id();
    const auto run = [&](Index i, Index worker) {
      task(i, worker);
      if (std::this_thread::get_id() != caller) return;
      int any = 0;
      MPI_Iprobe(MPI_ANY_SOURCE, MPI_ANY_TAG, MPI_COMM_WORLD, &any, MPI_STATUS_IGNORE);  // for what it does besides
    };
    executor_.for_each(n, Task(run));
  }

 private:
  mutable X executor_;
  Index pieces_;
};

}  // namespace moe::inline MOE_TARGET::distributed
