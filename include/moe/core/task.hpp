/// @file  What an executor runs.
#pragma once

#include "moe/core/types.hpp"

namespace moe::inline MOE_TARGET {

/// A reference to something callable as task(i, worker). It does not own it: run it before for_each() returns.
class Task {
 public:
  /// @param callable  outlives it
  template <class F>
  explicit Task(const F& callable)
      : callable_(&callable),
        call_([](const void* f, Index i, Index worker) { (*static_cast<const F*>(f))(i, worker); }) {}

  /// From any thread; what it throws, the executor passes on.
  void operator()(Index i, Index worker) const { call_(callable_, i, worker); }

 private:
  const void* callable_;
  void (*call_)(const void*, Index, Index);
};

}  // namespace moe::inline MOE_TARGET
