/// @file  Counts allocations. Include it before Eigen, in one translation unit of a program.
#pragma once

#if (defined(EIGEN_CORE_H) || defined(EIGEN_CORE_MODULE_H)) && !defined(EIGEN_RUNTIME_NO_MALLOC)
#error "allocations.hpp must come before Eigen, which else keeps its own allocations to itself"
#endif

#include <atomic>
#include <cstdlib>
#include <new>
#include <stdexcept>

namespace moe::test {

/// An assertion of Eigen that does not hold. Among others: that nothing is allocated inside of allocations_in().
struct EigenAssertion : std::logic_error {
  using std::logic_error::logic_error;
};

[[noreturn]] inline void eigen_assertion_failed(const char* what) { throw EigenAssertion(what); }

inline std::atomic<long> num_allocations{0}, num_bytes{0};

}  // namespace moe::test

// An exception instead of the end of the program; also where NDEBUG is defined.
#ifndef eigen_assert
#define eigen_assert(holds) (static_cast<bool>(holds) ? void() : ::moe::test::eigen_assertion_failed(#holds))
#endif
#ifndef EIGEN_RUNTIME_NO_MALLOC
#define EIGEN_RUNTIME_NO_MALLOC
#endif

#include <Eigen/Core>

[[gnu::noinline]] void* operator new(std::size_t size) {
  ++moe::test::num_allocations;
  moe::test::num_bytes += static_cast<long>(size);
  if (void* memory = std::malloc(size > 0 ? size : 1)) return memory;
  throw std::bad_alloc();
}
[[gnu::noinline]] void* operator new(std::size_t size, std::align_val_t alignment) {
  ++moe::test::num_allocations;
  moe::test::num_bytes += static_cast<long>(size);
  const auto line = static_cast<std::size_t>(alignment);
  if (void* memory = std::aligned_alloc(line, (size + line - 1) / line * line)) return memory;
  throw std::bad_alloc();
}
[[gnu::noinline]] void operator delete(void* memory) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete(void* memory, std::align_val_t) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete(void* memory, std::size_t, std::align_val_t) noexcept { std::free(memory); }

namespace moe::test {

/// How often f calls operator new, on any thread.
/// @throws EigenAssertion if it makes Eigen allocate.
template <class F>
long allocations_in(const F& f) {
  struct Forbidden {
    Forbidden() { Eigen::internal::set_is_malloc_allowed(false); }
    ~Forbidden() { Eigen::internal::set_is_malloc_allowed(true); }
  };
  const long before = num_allocations;
  const Forbidden forbidden;
  f();
  return num_allocations - before;
}

/// How many bytes f asks operator new for, on any thread; what Eigen's matrices take is not among them.
template <class F>
long bytes_allocated_in(const F& f) {
  const long before = num_bytes;
  f();
  return num_bytes - before;
}

}  // namespace moe::test
