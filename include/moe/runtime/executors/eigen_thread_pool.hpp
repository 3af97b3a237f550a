/// @file  The threads of an Eigen::ThreadPool that the caller already has.
#pragma once

#include <algorithm>
#include <atomic>

#if __has_include(<Eigen/ThreadPool>)  // since Eigen 5
#include <Eigen/ThreadPool>
#else
#include <unsupported/Eigen/CXX11/ThreadPool>
#endif

#include "moe/core/task.hpp"
#include "moe/core/types.hpp"
#include "moe/runtime/executors/first_error.hpp"

namespace moe::inline MOE_TARGET {

/// The calling thread works too, as worker 0. Do not call from inside the pool: it would wait for its own thread.
class EigenThreadPool {
 public:
  /// @param pool  must outlive this
  explicit EigenThreadPool(Eigen::ThreadPoolInterface& pool) : pool_(pool) {}

  Index workers() const { return pool_.NumThreads() + 1; }

  /// Runs task(i, worker) for each i in [0, n); the calling thread works as well.
  void for_each(Index n, const Task& task) const {
    FirstError error;
    std::atomic<Index> next{0};
    const auto work = [&](Index worker) {
      for (Index i = next++; i < n; i = next++) error.run([&] { task(i, worker); });
    };
    const Index helpers = std::min(n, workers()) - 1;
    Eigen::Barrier done(static_cast<unsigned>(std::max<Index>(helpers, 0)));
    for (Index w = 1; w <= helpers; ++w) {
      pool_.Schedule([&work, &done, w] {
        work(w);
        done.Notify();
      });
    }
    work(0);
    done.Wait();
    error.rethrow();
  }

 private:
  Eigen::ThreadPoolInterface& pool_;
};

}  // namespace moe::inline MOE_TARGET
