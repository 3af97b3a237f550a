/// @file  Carries an exception from whichever thread it was thrown on back to the caller.
#pragma once

#include <atomic>
#include <exception>

#include "moe/core/target.hpp"

namespace moe::inline MOE_TARGET {

/// Keeps the first exception of several threads; later ones are dropped.
class FirstError {
 public:
  /// Runs f, unless there is an error already.
  template <class F>
  void run(const F& f) noexcept {
    if (failed_.load(std::memory_order_relaxed)) return;
    try {
      f();
    } catch (...) {
      if (!failed_.exchange(true)) error_ = std::current_exception();
    }
  }

  /// Call when all threads are done.
  void rethrow() const {
    if (error_) std::rethrow_exception(error_);
  }

 private:
  std::atomic<bool> failed_{false};
  std::exception_ptr error_;
};

}  // namespace moe::inline MOE_TARGET
