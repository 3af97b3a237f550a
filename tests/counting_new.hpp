/// @file  The operators new and delete that count, for one translation unit of a program.
#pragma once

#include <cstdlib>
#include <new>

#include "allocations.hpp"
#include "thread_sanitizer.hpp"

#ifndef MOE_THREAD_SANITIZER  // which brings its own

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
// Those of AddressSanitizer would else make what the operators below free.
[[gnu::noinline]] void* operator new(std::size_t size, const std::nothrow_t& /*nothrow*/) noexcept {
  ++moe::test::num_allocations;
  moe::test::num_bytes += static_cast<long>(size);
  return std::malloc(size > 0 ? size : 1);
}
[[gnu::noinline]] void operator delete(void* memory) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete(void* memory, std::align_val_t) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete(void* memory, std::size_t, std::align_val_t) noexcept { std::free(memory); }

#endif
