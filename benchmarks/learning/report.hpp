/// @file  What was learnt, as text.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <string>
#include <vector>

#include "learning/run.hpp"
#include "text.hpp"

namespace moe::bench {

inline const char* const learning_head =
    "seed  FFNs                                           parameters  steps     FLOPs    a step      time bits/byte  "
    "to dense"
    "   at dense's loss";

/// 0.45 × dense's time, 512 steps
inline std::string time_to_dense_text(const Run& run, const std::vector<Run>& of_seed) {
  const double steps = steps_to(of_seed.front().bits(), run);
  const double time = steps * run.seconds_a_step / of_seed.front().seconds();
  return std::isfinite(steps) ? text("%5.2f x its time, step %.0f", time, steps) : "    never";
}

/// @param of_seed  all of its text and seed, `dense` first
inline std::string line_of(const Run& run, const std::vector<Run>& of_seed) {
  std::string line = text("%4d  %-46s %8.2f M %6td %9.3g %6.1f ms %7.1f s %9.4f %+7.1f %% %s", int(run.seed),
                          run.kind.words().c_str(), 1e-6 * double(run.numbers), run.steps(),
                          run.flops_a_step * double(run.steps()), 1e3 * run.seconds_a_step, run.seconds(), run.bits(),
                          100 * (run.bits() / of_seed.front().bits() - 1), time_to_dense_text(run, of_seed).c_str());
  if (run.busiest() > 0) line += text(", busiest expert %.1f", run.busiest());
  return line;
}

struct Spread {
  double mean, least, most;
};

inline Spread spread_of(const std::vector<double>& numbers) {
  double sum = 0;
  for (const double number : numbers) sum += number;
  const auto [least, most] = std::minmax_element(numbers.begin(), numbers.end());
  return {sum / double(numbers.size()), *least, *most};
}

/// By how much a model is ahead of `dense`, over the seeds of a text.
inline std::string verdict_of(const std::vector<std::vector<Run>>& seeds, std::size_t which) {
  std::vector<double> off, step, time;
  for (const auto& runs : seeds) {
    const Run &run = runs[which], &dense = runs.front();
    off.push_back(100 * (run.bits() / dense.bits() - 1));
    step.push_back(run.seconds_a_step / dense.seconds_a_step);
    time.push_back(time_to(dense, runs, run.kind));
  }
  const Spread bits = spread_of(off), first = spread_of(time);
  std::string line =
      text("%-46s %+6.1f %% bits per byte (%+.1f ... %+.1f), a step takes %.2f of dense's; ",
           seeds.front()[which].kind.words().c_str(), bits.mean, bits.least, bits.most, spread_of(step).mean);
  line += std::isfinite(first.most)
              ? text("at dense's loss after %.2f of its time (%.2f ... %.2f)", first.mean, first.least, first.most)
              : "not always at dense's loss";
  return line;
}

}  // namespace moe::bench
