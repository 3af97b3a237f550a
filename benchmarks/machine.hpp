/// @file  The machine that a figure was measured on.
#pragma once

#include <algorithm>
#include <fstream>
#include <string>
#include <thread>

#if defined(__linux__)
#include <sched.h>
#include <unistd.h>
#endif

#include "moe/core/types.hpp"

namespace moe::bench {

/// As the processor calls itself.
inline std::string processor_name() {
  std::ifstream in("/proc/cpuinfo");
  for (std::string line; std::getline(in, line);) {
    if (line.starts_with("model name")) return line.substr(line.find(':') + 2);
  }
  return "unknown processor";
}

inline std::string compiler_name() {
#if defined(__clang__)
  return "clang++ " __clang_version__;
#else
  return "g++ " __VERSION__;
#endif
}

inline Index num_cores() { return std::max(1U, std::thread::hardware_concurrency()); }

/// One a core; without OpenMP there is just one.
inline Index default_threads() {
#ifdef _OPENMP
  return num_cores();
#else
  return 1;
#endif
}

/// Those that this process may run on: fewer than there are where mpirun binds it.
inline Index usable_cores() {
#if defined(__linux__)
  cpu_set_t cores;
  if (sched_getaffinity(0, sizeof cores, &cores) == 0) return CPU_COUNT(&cores);
#endif
  return num_cores();
}

/// Bytes of the last cache; 0 where the system does not tell.
inline double last_cache_bytes() {
#if defined(_SC_LEVEL3_CACHE_SIZE)
  for (const int cache : {_SC_LEVEL4_CACHE_SIZE, _SC_LEVEL3_CACHE_SIZE, _SC_LEVEL2_CACHE_SIZE}) {
    if (const long bytes = sysconf(cache); bytes > 0) return static_cast<double>(bytes);
  }
#endif
  return 0;
}

}  // namespace moe::bench
