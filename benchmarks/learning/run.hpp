/// @file  What a model has learnt.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

#include "learning/kind.hpp"
#include "moe/core/types.hpp"

namespace moe::bench {

struct Point {
  Index step;
  double bits;  // for each held-out byte
};

struct Run {
  Kind kind;
  std::uint64_t seed = 0;
  Index planned_steps = 0;
  std::vector<Point> curve;
  double learning_rate = 0;                // the highest
  double flops_a_step = 0;                 // forward and backward
  double seconds_a_step = 0;               // the median
  Index numbers = 0;                       // that learn
  std::vector<std::vector<double>> loads;  // of each block: routes to each expert in the end, in even shares

  double bits() const { return curve.back().bits; }
  Index steps() const { return curve.empty() ? 0 : curve.back().step; }
  double seconds() const { return double(steps()) * seconds_a_step; }
  bool is_finished() const { return steps() == planned_steps; }
  double busiest() const {
    double most = 0;
    for (const auto& of_block : loads) most = std::max(most, *std::max_element(of_block.begin(), of_block.end()));
    return most;
  }
};

/// The same FFNs, whatever their time.
inline bool same_ffns(const Kind& a, const Kind& b) {
  return a.experts == b.experts && a.top_k == b.top_k && a.shared == b.shared && a.width == b.width;
}

/// Of the run of the same FFNs that learnt beside `dense`, for as many steps.
/// @pre there is one
inline double seconds_a_step_of(const Kind& kind, const std::vector<Run>& runs) {
  return std::find_if(runs.begin(), runs.end(),
                      [&](const Run& run) { return same_ffns(run.kind, kind) && run.kind.time == 0; })
      ->seconds_a_step;
}

/// Steps until a model knows so much, in a line between two points of its curve; infinite if it never does.
inline double steps_to(double bits, const Run& run) {
  for (std::size_t i = 0; i < run.curve.size(); ++i) {
    const auto& [step, here] = run.curve[i];
    if (here > bits) continue;
    if (i == 0) return double(step);
    const auto& [step_before, before] = run.curve[i - 1];
    return double(step) - double(step - step_before) * (bits - here) / (before - here);
  }
  return std::numeric_limits<double>::infinity();
}

/// Of all runs of the same FFNs, who knows first what `dense` knows in the end: its seconds, in those of `dense`.
inline double time_to(const Run& dense, const std::vector<Run>& runs, const Kind& kind) {
  double best = std::numeric_limits<double>::infinity();
  for (const Run& run : runs) {
    if (run.curve.empty() || !same_ffns(run.kind, kind)) continue;
    best = std::min(best, steps_to(dense.bits(), run) * run.seconds_a_step / dense.seconds());
  }
  return best;
}

}  // namespace moe::bench
