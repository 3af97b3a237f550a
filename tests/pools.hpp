/// @file  Executors as a user would write them.
#pragma once

#include <algorithm>
#include <atomic>
#include <numeric>
#include <thread>
#include <utility>
#include <vector>

#include "moe/core/task.hpp"
#include "moe/core/types.hpp"
#include "moe/runtime/executors/first_error.hpp"
#include "moe/runtime/executors/openmp.hpp"
#include "random.hpp"

namespace moe::test {

/// OpenMP's threads; the one that it has where the compiler lacks it.
inline OpenMp open_mp(Index workers) {
#ifdef _OPENMP
  return OpenMp(workers);
#else
  return OpenMp(std::min<Index>(workers, 1));
#endif
}

/// Starts its threads anew for each call.
struct OwnThreads {
  Index threads;

  Index workers() const { return threads; }
  void for_each(Index n, const Task& task) const {
    FirstError error;
    std::atomic<Index> next{0};
    std::vector<std::thread> team;
    for (Index worker = 0; worker < threads; ++worker) {
      team.emplace_back([&, worker] {
        for (Index i = next++; i < n; i = next++) error.run([&] { task(i, worker); });
      });
    }
    for (std::thread& thread : team) thread.join();
    error.rethrow();
  }
};

/// All that threads may do to an order, without threads: any order, by any worker.
struct Shuffled {
  Index num_workers;
  unsigned seed = 1;

  Index workers() const { return num_workers; }
  void for_each(Index n, const Task& task) const {
    Random random(seed);
    std::vector<Index> order(static_cast<std::size_t>(n));
    std::iota(order.begin(), order.end(), Index(0));
    for (Index i = 0; i < n; ++i) std::swap(order[std::size_t(i)], order[std::size_t(random.below(n))]);
    for (const Index i : order) task(i, random.below(num_workers));
  }
};

}  // namespace moe::test
