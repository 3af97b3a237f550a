/// @file  What a store of experts has done.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "moe/core/types.hpp"
#include "moe/telemetry/text.hpp"

namespace moe::inline MOE_TARGET {

namespace io {

/// Since the store was opened.
struct StoreStats {
  // Experts that calls used.
  std::uint64_t hits = 0;    // were in memory
  std::uint64_t shared = 0;  // were on their way for another call
  std::uint64_t misses = 0;  // were sent for
  std::uint64_t evictions = 0;
  std::uint64_t failures = 0;  // experts that could not be read

  std::uint64_t bytes_read = 0;  // of whole blocks of the disk
  double seconds_reading = 0;    // during which anything was on its way
  double seconds_waiting = 0;    // of calls that had nothing to compute meanwhile, all together
  double disk = 0;               // bytes a second that it gives, once ExpertStore::measure_disk() has asked it

  std::size_t memory = 0;         // of experts: what was asked for, all of it there from the beginning
  std::size_t most_used = 0;      // of it, so far
  std::size_t resident = 0;       // beside it: what loading kept, and what readers need
  std::size_t bytes_of_walk = 0;  // what one token may use of the layers that were loaded, at most
  Index experts_here = 0, experts = 0;
  Index files = 0, files_direct = 0;  // read past the system's cache

  /// Experts that calls asked for.
  std::uint64_t uses() const { return hits + shared + misses; }
  /// Of these, the share that was in memory; NaN before the first.
  double hit_rate() const { return uses() == 0 ? std::nan("") : double(hits) / double(uses()); }
  /// Bytes a second while anything was read.
  double read_rate() const { return seconds_reading == 0 ? std::nan("") : double(bytes_read) / seconds_reading; }
};

}  // namespace io

/// For the terminal: Unicode, no colours.
inline std::string to_table(const io::StoreStats& stats) {
  const auto mb = [](double bytes) { return detail::fixed(bytes / 1e6, 1) + " MB"; };
  const auto percent = [](double share) { return std::isnan(share) ? "-" : detail::fixed(100 * share, 1) + " %"; };
  const auto line = [](std::string_view name, const std::string& text) {
    return std::string(name) + std::string(11 - std::min<std::size_t>(name.size(), 10), ' ') + text + "\n";
  };
  const double rate = stats.read_rate();
  std::string text =
      line("uses", std::to_string(stats.uses()) + " of experts: " + percent(stats.hit_rate()) + " were here, " +
                       std::to_string(stats.shared) + " on their way, " + std::to_string(stats.misses) + " sent for");
  if (stats.failures > 0) text += line("failed", std::to_string(stats.failures) + " experts could not be read");
  text +=
      line("read", mb(double(stats.bytes_read)) + " in " + detail::fixed(stats.seconds_reading, 2) + " s" +
                       (std::isnan(rate) ? "" : ": " + mb(rate) + "/s") +
                       (stats.disk > 0 && !std::isnan(rate) ? ", " + percent(rate / stats.disk) + " of the disk" : ""));
  text += line("waited", detail::fixed(stats.seconds_waiting, 2) + " s, with nothing to compute");
  text += line("memory", mb(double(stats.memory)) + " of experts, of which " + mb(double(stats.most_used)) +
                             " were used; " + mb(double(stats.resident)) + " beside it");
  text += line("experts", std::to_string(stats.experts_here) + " of " + std::to_string(stats.experts) + " here, " +
                              std::to_string(stats.evictions) + " evicted; one token uses " +
                              mb(double(stats.bytes_of_walk)) + " at most");
  text += line("files", std::to_string(stats.files) + ", " +
                            (stats.files_direct == stats.files
                                 ? "read past the system's cache"
                                 : std::to_string(stats.files - stats.files_direct) +
                                       " of them through the system's cache, as their file system wants it"));
  return text;
}

}  // namespace moe::inline MOE_TARGET
