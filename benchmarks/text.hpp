/// @file  Numbers as people read them.
#pragma once

#include <array>
#include <cmath>
#include <cstdio>
#include <string>

namespace moe::bench {

/// As printf.
template <class... Args>
std::string text(const char* format, Args... args) {
  std::array<char, 512> buffer{};
  std::snprintf(buffer.data(), buffer.size(), format, args...);
  return buffer.data();
}

/// Three digits: 1.23, 12.3, 123; larger ones in full.
inline std::string three_digits(double number) {
  const double size = std::abs(number);
  return text("%.*f", size < 9.995 ? 2 : size < 99.95 ? 1 : 0, number);
}

namespace detail {
inline std::string with_unit(double number, double step, const std::array<const char*, 4>& units) {
  std::size_t unit = 0;
  while (unit + 1 < units.size() && std::abs(number) >= 999.5 * std::pow(step, unit)) ++unit;
  return three_digits(number / std::pow(step, unit)) + " " + units[unit];
}
}  // namespace detail

/// 403 M
inline std::string count_text(double count) {
  return count < 1e3 ? text("%.0f", count) : detail::with_unit(count / 1e3, 1e3, {"k", "M", "B", "T"});
}

/// 1.61 GB, in powers of 1000 as memory bandwidth is given
inline std::string bytes_text(double bytes) { return detail::with_unit(bytes / 1e3, 1e3, {"kB", "MB", "GB", "TB"}); }

/// 6.20 ms
inline std::string seconds_text(double seconds) {
  return detail::with_unit(seconds * 1e9, 1e3, {"ns", "us", "ms", "s"});
}

/// 94 %, and 0.3 % where no digit would be left
inline std::string percent_text(double share) { return text(share < 0.0095 ? "%.1f %%" : "%.0f %%", 100 * share); }

/// Broken between words into lines of at most `width`, as far as words are that short.
inline std::string wrapped(const std::string& words, std::size_t width = 120) {
  std::string lines = words;
  for (std::size_t begin = 0; lines.size() - begin > width;) {
    std::size_t space = lines.rfind(' ', begin + width);
    if (space == std::string::npos || space <= begin) space = lines.find(' ', begin + width);
    if (space == std::string::npos) break;
    lines[space] = '\n';
    begin = space + 1;
  }
  return lines;
}

}  // namespace moe::bench
