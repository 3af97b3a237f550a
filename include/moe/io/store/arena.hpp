/// @file  Memory of a fixed size, handed out in blocks of any size.
#pragma once

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <fstream>
#include <memory>
#include <optional>
#include <string>
#include <system_error>
#include <vector>

#include "moe/core/huge_pages.hpp"
#include "moe/core/types.hpp"
#include "moe/io/error.hpp"

#if !defined(_WIN64) && __has_include(<sys/mman.h>)
#include <sys/mman.h>
#endif

namespace moe::inline MOE_TARGET::io {

/// Bytes that the system has, or that the control group of this process may have, whichever is less; none if nobody
/// says.
inline std::optional<std::size_t> available_memory() {
  std::optional<std::size_t> least;
  const auto at_most = [&](unsigned long long bytes) {
    if (!least || bytes < *least) least = std::size_t(bytes);
  };
  std::ifstream info("/proc/meminfo");
  for (std::string line; std::getline(info, line);) {
    unsigned long long kilobytes = 0;
    if (std::sscanf(line.c_str(), "MemAvailable: %llu kB", &kilobytes) == 1) at_most(kilobytes << 10);
  }
  std::ifstream groups("/proc/self/cgroup");
  for (std::string line; std::getline(groups, line);) {  // 0::/path of version 2, 7:memory:/path of version 1
    const std::size_t first = line.find(':'), second = line.find(':', first + 1);
    if (second == line.npos) continue;
    const std::string controllers = "," + line.substr(first + 1, second - first - 1) + ",";
    const bool is_second = controllers == ",,", is_memory = controllers.find(",memory,") != controllers.npos;
    if (!is_second && !is_memory) continue;
    const std::string root = is_second ? "/sys/fs/cgroup" : "/sys/fs/cgroup/memory", path = line.substr(second + 1);
    for (const std::string& group : {root + path, root}) {  // in a container its own is the root
      std::ifstream limit(group + (is_second ? "/memory.max" : "/memory.limit_in_bytes"));
      unsigned long long bytes = 0;
      if (limit >> bytes) at_most(bytes);  // "max" is no number
    }
  }
  return least;
}

/// All of it is there from the beginning, in huge pages where the system has them: a request of the disk has 254
/// segments, which are 1 MB of small pages (docs/out_of_core.md). A child process does not inherit it.
class Arena {
 public:
  static constexpr std::size_t alignment = 4096;  // of blocks

  /// @throws Error if the system, or this process's control group, does not have so much.
  explicit Arena(std::size_t bytes) : memory_(allocate(bytes)), size_(bytes / alignment * alignment) {
    blocks_.push_back({0, size_, true});
  }

  /// The first byte.
  std::byte* data() const { return memory_.get(); }
  std::size_t size() const { return size_; }
  std::size_t used() const { return used_; }

  /// The first place with room for a block; none if no free one is long enough.
  std::optional<std::size_t> take(std::size_t bytes) {
    bytes = (bytes + alignment - 1) / alignment * alignment;
    for (std::size_t i = 0; i < blocks_.size(); ++i) {
      if (!blocks_[i].is_free || blocks_[i].size < bytes) continue;
      const Block rest{blocks_[i].at + bytes, blocks_[i].size - bytes, true};
      blocks_[i] = {blocks_[i].at, bytes, false};
      if (rest.size > 0) blocks_.insert(blocks_.begin() + std::ptrdiff_t(i) + 1, rest);
      used_ += bytes;
      return blocks_[i].at;
    }
    return std::nullopt;
  }

  /// @param at  of a block that was taken
  void give_back(std::size_t at) {
    const auto block = std::ranges::lower_bound(blocks_, at, {}, &Block::at);
    used_ -= block->size;
    block->is_free = true;
    merge_with_next(block);
    if (block != blocks_.begin()) merge_with_next(block - 1);
  }

 private:
  struct Block {
    std::size_t at, size;
    bool is_free;
  };

  void merge_with_next(std::vector<Block>::iterator block) {
    const auto next = block + 1;
    if (!block->is_free || next == blocks_.end() || !next->is_free) return;
    block->size += next->size;
    blocks_.erase(next);
  }

  static std::shared_ptr<std::byte> allocate(std::size_t bytes) {
    const std::optional<std::size_t> available = available_memory();
    if (available && bytes > *available) {
      fail("ExpertStore: memory is ", bytes, " bytes, expected at most ", *available,
           ", which is what the system, or this process's control group, has");
    }
#if defined(MAP_ANONYMOUS)
    constexpr std::size_t huge_page = HugePageAllocator<std::byte>::huge_page;
    const std::size_t mapped = (bytes + huge_page - 1) / huge_page * huge_page + huge_page;
    void* const pages = ::mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (pages == MAP_FAILED) {
      fail("ExpertStore: memory is ", bytes, " bytes: ", std::generic_category().message(errno));
    }
    auto* const memory =
        reinterpret_cast<std::byte*>((reinterpret_cast<std::uintptr_t>(pages) + huge_page - 1) / huge_page * huge_page);
#if defined(MADV_HUGEPAGE)
    if (bytes >= huge_page) ::madvise(memory, bytes / huge_page * huge_page, MADV_HUGEPAGE);  // only advice
    ::madvise(pages, mapped, MADV_DONTFORK);
#endif
    const auto free = [pages, mapped](std::byte*) { ::munmap(pages, mapped); };
#else
    HugePageAllocator<std::byte> allocator;
    std::byte* const memory = allocator.allocate(bytes + alignment);
    const auto free = [allocator, bytes](std::byte* all) mutable { allocator.deallocate(all, bytes + alignment); };
#endif
    std::shared_ptr<std::byte> all(memory, free);
    for (std::size_t i = 0; i < bytes; i += alignment) memory[i] = std::byte(0);
    return all;
  }

  std::shared_ptr<std::byte> memory_;
  std::size_t size_, used_ = 0;
  std::vector<Block> blocks_;  // in order, without gaps; no two neighbours are free
};

}  // namespace moe::inline MOE_TARGET::io
