/// @file  A bar that tells how far a program is, for whoever watches.
#pragma once

#include <chrono>
#include <cstdio>
#include <string>

#include "text.hpp"

#if defined(__unix__) || defined(__APPLE__)
#include <unistd.h>
#endif

namespace moe::bench {

/// On standard error, and only if that is a terminal. The line is gone when it is cleared or destroyed.
class Progress {
 public:
  Progress() {
#if defined(__unix__) || defined(__APPLE__)
    watched_ = isatty(STDERR_FILENO) != 0;
#endif
  }
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;
  ~Progress() { clear(); }

  double seconds() const {  ///< Since it was made.
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin_).count();
  }

  /// @param share  of the work that is done
  void show(double share, const std::string& what) {
    constexpr int width = 30;
    if (!watched_) return;
    std::string bar(width, '.');
    for (int i = 0; i < static_cast<int>(width * share); ++i) bar[std::size_t(i)] = '#';
    std::fprintf(stderr, "\r\033[K[%s] %3.0f %%  %s%s", bar.c_str(), 100 * share, what.c_str(), left(share).c_str());
    std::fflush(stderr);
  }

  void clear() {
    if (watched_) std::fputs("\r\033[K", stderr);
  }

 private:
  /// As if the rest went as fast as what is done.
  std::string left(double share) const {
    if (share <= 0 || share >= 1) return "";
    const double more = seconds() * (1 - share) / share;
    return more < 90 ? text(", about %.0f s left", more) : text(", about %.0f min left", more / 60);
  }

  std::chrono::steady_clock::time_point begin_ = std::chrono::steady_clock::now();
  bool watched_ = false;
};

}  // namespace moe::bench
