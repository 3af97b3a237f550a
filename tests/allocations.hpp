/// @file  Counts allocations. Include it before Eigen, in one translation unit of a program; in many, where
/// MOE_LAWS_ARE_COMPILED says that allocations.cpp is linked.
#pragma once

#if (defined(EIGEN_CORE_H) || defined(EIGEN_CORE_MODULE_H)) && !defined(EIGEN_RUNTIME_NO_MALLOC)
#error "allocations.hpp must come before Eigen, which else keeps its own allocations to itself"
#endif

#include <atomic>
#include <stdexcept>

namespace moe::test {

/// An assertion of Eigen that does not hold. Among others: that nothing is allocated inside of allocations_in().
struct EigenAssertion : std::logic_error {
  using std::logic_error::logic_error;
};

[[noreturn]] inline void eigen_assertion_failed(const char* what) { throw EigenAssertion(what); }

#ifdef MOE_LAWS_ARE_COMPILED
extern std::atomic<long> num_allocations, num_bytes;
#else
inline std::atomic<long> num_allocations{0}, num_bytes{0};
#endif

}  // namespace moe::test

// An exception instead of the end of the program; also where NDEBUG is defined.
#ifndef eigen_assert
#define eigen_assert(holds) (static_cast<bool>(holds) ? void() : ::moe::test::eigen_assertion_failed(#holds))
#endif
#ifndef EIGEN_RUNTIME_NO_MALLOC
#define EIGEN_RUNTIME_NO_MALLOC
#endif

#include <Eigen/Core>

#include "thread_sanitizer.hpp"

#ifndef MOE_LAWS_ARE_COMPILED
#include "counting_new.hpp"
#endif

namespace moe::test {

/// ThreadSanitizer has operators new of its own, which count nothing: a test that counts skips itself there.
inline constexpr bool allocations_are_counted = !under_thread_sanitizer;

inline void require_counted() {
  if (!allocations_are_counted)
    throw std::logic_error("nothing counts allocations under ThreadSanitizer: skip the test");
}

/// How often f calls operator new, on any thread.
/// @throws EigenAssertion if it makes Eigen allocate; std::logic_error unless allocations_are_counted.
template <class F>
long allocations_in(const F& f) {
  struct Forbidden {
    Forbidden() { Eigen::internal::set_is_malloc_allowed(false); }
    ~Forbidden() { Eigen::internal::set_is_malloc_allowed(true); }
  };
  require_counted();
  const long before = num_allocations;
  const Forbidden forbidden;
  f();
  return num_allocations - before;
}

/// How many bytes f asks operator new for, on any thread; what Eigen's matrices take is not among them.
template <class F>
long bytes_allocated_in(const F& f) {
  require_counted();
  const long before = num_bytes;
  f();
  return num_bytes - before;
}

}  // namespace moe::test
