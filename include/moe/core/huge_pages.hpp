/// @file  Memory for weights, in huge pages where the system has them.
#pragma once

#include <cstddef>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "moe/core/target.hpp"

namespace moe::inline MOE_TARGET {

/// An allocator that asks Linux for huge pages: a walk through weights in 4 KB pages spends 5 to 10 % of a token's time
/// on page tables (benchmarks/bench_layer, tokens:1). Memory is aligned to a cache line, large memory to a huge page.
template <class T>
struct HugePageAllocator {
  using value_type = T;  ///< What an allocator of the standard library says.

  static constexpr std::size_t huge_page = std::size_t(2) << 20;  // bytes: x86-64, and ARM with 4 KB pages

  HugePageAllocator() = default;
  template <class U>
  HugePageAllocator(const HugePageAllocator<U>&) {}  ///< It holds nothing: any allocates what any other deallocates.

  /// @throws std::bad_alloc where there is no memory.
  T* allocate(std::size_t count) {
    const std::size_t bytes = count * sizeof(T);
    void* const memory = ::operator new(bytes, alignment(bytes));
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    if (bytes >= huge_page) ::madvise(memory, bytes / huge_page * huge_page, MADV_HUGEPAGE);  // only advice
#endif
    return static_cast<T*>(memory);
  }

  /// Of what allocate(count) gave.
  void deallocate(T* memory, std::size_t count) { ::operator delete(memory, alignment(count * sizeof(T))); }

  /// Always: each deallocates what another allocated.
  template <class U>
  bool operator==(const HugePageAllocator<U>&) const {
    return true;
  }

 private:
  static constexpr std::align_val_t alignment(std::size_t bytes) {
    return std::align_val_t(bytes >= huge_page ? huge_page : 64);
  }
};

}  // namespace moe::inline MOE_TARGET
