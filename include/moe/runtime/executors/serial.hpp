/// @file  One thread, in order.
#pragma once

#include "moe/core/task.hpp"
#include "moe/core/types.hpp"

namespace moe::inline MOE_TARGET {

/// The calling thread alone.
struct Serial {
  Index workers() const { return 1; }

  /// In ascending order; what a task throws ends it.
  void for_each(Index n, const Task& task) const {
    for (Index i = 0; i < n; ++i) task(i, 0);
  }
};

}  // namespace moe::inline MOE_TARGET
