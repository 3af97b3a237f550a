/// @file  Addresses for weights that are made when they are needed.
#pragma once

#include <cerrno>
#include <cstddef>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <system_error>
#include <utility>
#include <vector>

#include "moe/io/error.hpp"
#include "moe/io/store/lender.hpp"

#if !defined(_WIN64) && __has_include(<sys/mman.h>)
#include <sys/mman.h>
#endif

namespace moe::inline MOE_TARGET::io {

/// Nothing lies there, and nothing ever will: memory is reserved so that nobody else has these addresses.
class PromisedAddresses {
 public:
  /// An address for them: where nothing is, aligned to 64 bytes.
  const std::byte* add(PromisedWeights weights) {
    const std::size_t size = (weights.size + 63) / 64 * 64;
    if (size > left_) reserve(size);
    const std::byte* const address = next_;
    next_ += size;
    left_ -= size;
    promised_.emplace(address, std::move(weights));
    return address;
  }

  /// Those that begin there; null if none do.
  const PromisedWeights* find(const std::byte* address) const {
    const auto found = promised_.find(address);
    return found == promised_.end() ? nullptr : &found->second;
  }

 private:
  void reserve([[maybe_unused]] std::size_t bytes) {
#if !defined(_WIN64) && __has_include(<sys/mman.h>)
    const std::size_t all = std::max(bytes, std::size_t(1) << 32);
    int flags = MAP_PRIVATE | MAP_ANONYMOUS;
#if defined(MAP_NORESERVE)
    flags |= MAP_NORESERVE;
#endif
    void* const pages = ::mmap(nullptr, all, PROT_NONE, flags, -1, 0);
    if (pages == MAP_FAILED) fail("ExpertStore: ", all, " addresses: ", std::generic_category().message(errno));
    reserved_.emplace_back(pages, [all](void* first) { ::munmap(first, all); });
    next_ = static_cast<const std::byte*>(pages);
    left_ = all;
#else
    fail("ExpertStore: this system reserves no addresses for weights that are stored turned");
#endif
  }

  std::map<const std::byte*, PromisedWeights, std::less<>> promised_;  // stay where they are
  std::vector<std::shared_ptr<void>> reserved_;
  const std::byte* next_ = nullptr;
  std::size_t left_ = 0;
};

}  // namespace moe::inline MOE_TARGET::io
