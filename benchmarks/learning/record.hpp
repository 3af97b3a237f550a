/// @file  A run as JSON.
#pragma once

#include <cmath>
#include <string>
#include <vector>

#include "learning/options.hpp"
#include "learning/run.hpp"
#include "machine.hpp"
#include "moe/io/ordered_json.hpp"

namespace moe::bench {

/// `seconds` are those of the median step; `time_to_dense`, in those of `dense`, is null of a model that never knew
/// what `dense` knew in the end, and before all runs of that seed have finished.
inline io::OrderedJson record_of(const Run& run, const std::vector<Run>& of_seed, const std::string& text_name,
                                 const LearnOptions& o) {
  auto curve = io::OrderedJson::array();
  for (const auto& [step, bits] : run.curve) {
    curve.push_back({{"step", step},
                     {"flops", double(step) * run.flops_a_step},
                     {"seconds", double(step) * run.seconds_a_step},
                     {"held_out_bits_per_byte", bits}});
  }
  io::OrderedJson record{{"text", text_name},
                         {"ffns", run.kind.words()},
                         {"model", run.kind.spec},
                         {"seed", run.seed},
                         {"parameters", run.numbers},
                         {"steps", run.planned_steps},
                         {"batch", o.batch},
                         {"d_model", o.shape.d_model},
                         {"active", o.active},
                         {"learning_rate", run.learning_rate},
                         {"threads", o.threads},
                         {"processor", processor_name()},
                         {"time_to_dense", nullptr},
                         {"loads", run.loads},
                         {"curve", curve}};
  if (!of_seed.empty()) {
    const double time = time_to(of_seed.front(), of_seed, run.kind);
    if (std::isfinite(time)) record["time_to_dense"] = time;
  }
  return record;
}

}  // namespace moe::bench
