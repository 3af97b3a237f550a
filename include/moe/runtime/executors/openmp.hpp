/// @file  The threads of OpenMP. Without -fopenmp it is one thread, in order, and says so.
#pragma once

#ifdef _OPENMP
#include <omp.h>
#endif

#include <limits>
#include <string>

#include "moe/core/check.hpp"
#include "moe/core/task.hpp"
#include "moe/core/types.hpp"
#include "moe/runtime/executors/first_error.hpp"
#include "moe/runtime/executors/serial.hpp"

// Two names, for the linker: a file with -fopenmp and one without may meet in one program.
#ifdef _OPENMP
namespace moe::inline MOE_TARGET::inline with_openmp {

class OpenMp {
 public:
  /// As many workers as OpenMP would start: OMP_NUM_THREADS, or one a core.
  OpenMp() : OpenMp(omp_get_max_threads()) {}

  /// @throws std::invalid_argument unless workers ≥ 1, and an int.
  explicit OpenMp(Index workers) : workers_(static_cast<int>(workers)) {
    require_between(1, workers, std::numeric_limits<int>::max(), "OpenMp: workers");
  }

  Index workers() const { return workers_; }

  void for_each(Index n, const Task& task) const {
    FirstError error;
#pragma omp parallel for num_threads(workers_) schedule(dynamic, 1)
    for (Index i = 0; i < n; ++i) error.run([&] { task(i, omp_get_thread_num()); });
    error.rethrow();
  }

 private:
  int workers_;
};

}  // namespace moe::inline MOE_TARGET::inline with_openmp
#else
namespace moe::inline MOE_TARGET::inline without_openmp {

/// In a file that is compiled without OpenMP: one thread, which says so.
class OpenMp : public Serial {
 public:
  [[deprecated("compiled without -fopenmp, this is one thread: add that flag, or say moe::Serial()")]]
  OpenMp() {}  // said once for each that is compiled: g++ is silent about a default of its own

  /// @throws std::invalid_argument unless workers is 1.
  explicit OpenMp(Index workers) {
    if (workers == 1) return;
    require_at_least(1, workers, "OpenMp: workers");
    require(false, "OpenMp: workers is " + std::to_string(workers) +
                       ", expected 1 in a file that is compiled without " +
                       "-fopenmp: add that flag, or OpenMP::OpenMP_CXX in CMake");
  }
};

}  // namespace moe::inline MOE_TARGET::inline without_openmp
#endif
