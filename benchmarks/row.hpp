/// @file  One line of the comparison.
#pragma once

#include <algorithm>
#include <optional>
#include <span>

#include "contender.hpp"
#include "moe/core/types.hpp"
#include "work.hpp"

namespace moe::bench {

struct Row {
  Kind kind;
  Index tokens = 0;
  double seconds = 0;  // median
  Work experts{};      // mean of the calls: which experts are used differs from call to call
  double limit_share = 0;
  std::optional<double> routing_share{};  // of the sparse layer's time
  std::optional<double> error{};          // of the sparse layer's answers, by those of float weights
  bool measured = true;                   // if not, `seconds` is how long a call would have taken

  double gflops() const { return 1e-9 * experts.flops / seconds; }
  double gbs() const { return 1e-9 * experts.bytes / seconds; }
};

/// The measured row of this kind for this many tokens, or null.
inline const Row* find_row(std::span<const Row> rows, Kind kind, Index tokens) {
  const auto found = std::find_if(rows.begin(), rows.end(), [&](const Row& row) {
    return row.measured && row.kind == kind && row.tokens == tokens;
  });
  return found == rows.end() ? nullptr : &*found;
}

/// How many times as long `kind` takes as the layer of this row; nothing where it was not measured.
inline std::optional<double> times_as_long(std::span<const Row> rows, Kind kind, const Row& as) {
  const Row* other = find_row(rows, kind, as.tokens);
  return other && as.measured ? std::optional(other->seconds / as.seconds) : std::nullopt;
}

}  // namespace moe::bench
