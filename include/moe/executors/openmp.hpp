/// @file  The threads of OpenMP. Without -fopenmp it is one thread, in order.
#pragma once

#ifdef _OPENMP
#include <omp.h>
#endif

#include "moe/check.hpp"
#include "moe/executors/first_error.hpp"
#include "moe/executors/serial.hpp"
#include "moe/task.hpp"
#include "moe/types.hpp"

namespace moe::inline MOE_TARGET {

#ifdef _OPENMP

class OpenMp {
 public:
  /// As many workers as OpenMP would start: OMP_NUM_THREADS, or one a core.
  OpenMp() : OpenMp(omp_get_max_threads()) {}

  /// @throws std::invalid_argument unless workers ≥ 1.
  explicit OpenMp(Index workers) : workers_(static_cast<int>(workers)) {
    require(workers >= 1, "OpenMp: workers is " + std::to_string(workers) + ", expected at least 1");
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

#else

class OpenMp : public Serial {
 public:
  OpenMp() = default;
  explicit OpenMp(Index /*workers*/) {}
};

#endif

}  // namespace moe::inline MOE_TARGET
