/// @file  How fast a model would run with so much memory for its experts.
#pragma once

#include <algorithm>
#include <cstddef>
#include <string>
#include <utility>
#include <vector>

#include "moe/core/check.hpp"
#include "moe/core/types.hpp"
#include "moe/io/store/policies.hpp"
#include "moe/io/store/simulate.hpp"
#include "moe/io/store/trace.hpp"

namespace moe::inline MOE_TARGET::io {

/// What a machine does in a second, and beside experts.
struct PlannedMachine {
  double disk = 0;             // bytes a second that it reads, of whole experts
  double compute = 0;          // bytes of experts a second that it computes: few tokens are limited by memory
  double seconds_besides = 0;  // of a token: attention, routers, …
};

/// Where the time goes, in seconds of the part of a run that counts.
struct PlannedTime {
  double total = 0;
  double reading = 0;    // if nothing else was done
  double computing = 0;  // …
};

/// A budget under a policy.
struct PlannedRun {
  std::string policy;
  Index memory = 0;
  SimulatedCall sum = {};  // of the calls that count
  PlannedTime time = {};
  double tokens = 0;  // that count

  double tokens_a_second() const { return tokens / time.total; }            ///< Of those that count.
  double bytes_a_token() const { return double(sum.bytes_read) / tokens; }  ///< That were read from the disk.

  /// "disk" or "compute", whichever alone would take longer.
  const char* limit() const { return time.reading > time.computing ? "disk" : "compute"; }
};

/// Time of a call: experts in memory are computed while others are read, then each as it comes; the last one has
/// nobody to hide behind.
inline PlannedTime time_of(const SimulatedCall& call, const PlannedMachine& machine) {
  const double reading = double(call.bytes_read) / machine.disk, computing = double(call.bytes_used) / machine.compute;
  const double last = call.misses == 0 ? 0 : double(call.bytes_read) / double(call.misses) / machine.compute;
  return {std::max(reading, computing - last) + last, reading, computing};
}

/// Calls before this one fill the memory, and do not count: those of the first fifth of the tokens.
inline Index first_counted_call(const Trace& trace) {
  std::vector<Index> tokens = trace.token;
  std::ranges::sort(tokens);
  tokens.erase(std::unique(tokens.begin(), tokens.end()), tokens.end());
  if (tokens.empty()) return 0;
  const Index first = tokens[tokens.size() / 5];
  const auto counts = [&](const Trace::Call& call) {
    return call.begin < call.end && trace.token[std::size_t(call.begin)] >= first;
  };
  return std::ranges::find_if(trace.calls, counts) - trace.calls.begin();
}

/// @throws std::invalid_argument as simulate(), or unless the machine reads and computes something.
template <EvictionPolicy P>
PlannedRun plan_run(const Trace& trace, const ExpertBytes& bytes, Index memory, std::string name, P policy,
                    const PlannedMachine& machine) {
  require(machine.disk > 0 && machine.compute > 0 && machine.seconds_besides >= 0,
          "plan_run: the machine's disk, compute and seconds_besides are " + std::to_string(machine.disk) + ", " +
              std::to_string(machine.compute) + " and " + std::to_string(machine.seconds_besides) +
              ", expected more than 0, of the last 0 or more");
  const auto calls = simulate(trace, bytes, memory, std::move(policy));
  const Index first = first_counted_call(trace);
  PlannedRun run{.policy = std::move(name), .memory = memory};
  std::vector<Index> tokens;
  for (std::size_t c = std::size_t(first); c < calls.size(); ++c) {
    run.sum += calls[c];
    const PlannedTime time = time_of(calls[c], machine);
    run.time.total += time.total, run.time.reading += time.reading, run.time.computing += time.computing;
    for (Index r = trace.calls[c].begin; r < trace.calls[c].end; ++r) tokens.push_back(trace.token[std::size_t(r)]);
  }
  std::ranges::sort(tokens);
  run.tokens = double(std::unique(tokens.begin(), tokens.end()) - tokens.begin());
  run.time.total += run.tokens * machine.seconds_besides;
  return run;
}

/// Bytes of experts that a token uses in all layers, on average.
inline double bytes_of_walk(const Trace& trace, const ExpertBytes& bytes) {
  double all = 0;
  for (const Trace::Call& call : trace.calls) {
    for (Index r = call.begin; r < call.end; ++r) {
      const auto& layer = bytes[std::size_t(call.layer)];
      const Index expert = trace.expert[std::size_t(r)];
      if (expert < std::ssize(layer)) all += double(layer[std::size_t(expert)]);
    }
  }
  return all / double(std::max<Index>(trace.num_tokens(), 1));
}

}  // namespace moe::inline MOE_TARGET::io
