/// @file  What a disk gives to reads of whole experts.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

#include "moe/core/random_number.hpp"
#include "moe/core/types.hpp"
#include "moe/io/error.hpp"
#include "moe/io/store/arena.hpp"
#include "moe/io/store/stored_file.hpp"

namespace moe::inline MOE_TARGET::io {

/// How the disk is asked.
struct DiskProbe {
  std::size_t piece = std::size_t(8) << 20;  // bytes of a read, as an expert has; 4 KB to 32 MB are read at once
  Index threads = 4;
  double seconds = 1;
  std::uint64_t seed = 2026;  // of the places
};

/// Bytes a second that a file gives to threads which read pieces at random, all at once, past the system's cache.
/// @param size  of the file
/// @throws Error if it is too small, 16 pieces or 64 MB, or is not read past the cache.
inline double measure_disk(const StoredFile& file, std::uint64_t size, const DiskProbe& probe = {}) {
  constexpr std::size_t block = StoredFile::block;
  const std::size_t piece = std::clamp(probe.piece / block * block, block, std::size_t(32) << 20);
  const std::uint64_t least = std::max<std::uint64_t>(16 * piece, std::uint64_t(64) << 20);
  if (size < least) fail(size, " bytes are too few to measure a disk, expected at least ", least);
  if (!file.is_direct()) fail("its disk cannot be read past the system's cache, and so not be measured");
  const auto threads = std::size_t(std::max<Index>(probe.threads, 1));
  Arena memory(threads * piece);
  std::atomic<std::uint64_t> bytes = 0;
  std::mutex mutex;
  std::exception_ptr error;
  const auto start = std::chrono::steady_clock::now();
  const auto passed = [&] { return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count(); };
  const auto read = [&](std::size_t t) {
    try {
      for (std::uint64_t i = 0; passed() < probe.seconds; ++i) {
        const Index place = random_below(Index((size - piece) / block), probe.seed + t, i);
        bytes += file.read(std::uint64_t(place) * block, {memory.data() + t * piece, piece});
      }
    } catch (...) {
      const std::lock_guard lock(mutex);
      error = std::current_exception();
    }
  };
  std::vector<std::thread> others;
  for (std::size_t t = 1; t < threads; ++t) others.emplace_back(read, t);
  read(0);
  for (std::thread& thread : others) thread.join();
  if (error) std::rethrow_exception(error);
  return double(bytes) / passed();
}

}  // namespace moe::inline MOE_TARGET::io
