/// @file  How much memory there is, asked before it is taken.
#pragma once

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <limits>
#include <stdexcept>
#include <string>

#include "text.hpp"

namespace moe::bench {

/// Thrown before anything is allocated.
struct DoesNotFit : std::runtime_error {
  using std::runtime_error::runtime_error;
};

namespace detail {

inline constexpr double unlimited = std::numeric_limits<double>::infinity();

/// The number after `key` in a file of "key number" lines, or `otherwise`.
inline double number_after(const std::filesystem::path& file, const std::string& key, double otherwise) {
  std::ifstream in(file);
  for (std::string line; std::getline(in, line);) {
    if (line.starts_with(key)) return std::stod(line.substr(key.size()));
  }
  return otherwise;
}

/// The number that is all of the file; "max", or no file, is `otherwise`.
inline double number_in(const std::filesystem::path& file, double otherwise) {
  std::ifstream in(file);
  double number = 0;
  return in >> number ? number : otherwise;
}

/// What a control group may still take; file cache that nobody reads does not count as taken.
inline double left_in_group(const std::filesystem::path& group) {
  const bool v2 = std::filesystem::exists(group / "memory.max");
  const double limit = number_in(group / (v2 ? "memory.max" : "memory.limit_in_bytes"), unlimited);
  const double used = number_in(group / (v2 ? "memory.current" : "memory.usage_in_bytes"), 0);
  const double cache = number_after(group / "memory.stat", v2 ? "inactive_file " : "total_inactive_file ", 0);
  return limit - std::max(0.0, used - cache);
}

/// The least that is left in a control group below `mount` or in one that it is part of.
inline double left_in_groups(const std::filesystem::path& mount, std::filesystem::path group) {
  double left = left_in_group(mount);
  for (group = group.relative_path(); !group.empty(); group = group.parent_path()) {
    left = std::min(left, left_in_group(mount / group));
  }
  return left;
}

}  // namespace detail

/// Bytes that this process may take before the machine or its container runs out; infinity where nobody tells.
/// @param root  where proc and sys are
inline double available_memory(const std::filesystem::path& root = "/") {
  double left = detail::number_after(root / "proc/meminfo", "MemAvailable:", detail::unlimited / 1024) * 1024;
  const auto groups = root / "sys/fs/cgroup";
  std::ifstream in(root / "proc/self/cgroup");
  for (std::string line; std::getline(in, line);) {  // id:controllers:/path
    const std::string controllers = line.substr(0, line.rfind(':')), path = line.substr(line.rfind(':') + 1);
    if (controllers == "0:") left = std::min(left, detail::left_in_groups(groups, path));
    if (controllers.ends_with(":memory")) left = std::min(left, detail::left_in_groups(groups / "memory", path));
  }
  return left;
}

/// @throws DoesNotFit naming both sizes unless `needed` bytes are available.
inline void require_memory(double needed, const std::string& what, double available = available_memory()) {
  if (needed > available) {
    throw DoesNotFit(what + " needs " + bytes_text(needed) + " of memory; " + bytes_text(available) + " are available");
  }
}

}  // namespace moe::bench
