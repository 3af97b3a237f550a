/// @file  Lets all models of one seed learn in turn.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "learning/corpus.hpp"
#include "learning/learner.hpp"
#include "learning/model.hpp"
#include "learning/options.hpp"
#include "learning/run.hpp"

namespace moe::bench {

/// What a model costs, in steps of `dense`, as far as FLOPs tell before it is measured.
inline double work_of(const Kind& kind, const LearnOptions& o) {
  if (kind.time > 0) return kind.time * double(o.steps);
  const double relative = flops_a_step(kind, o) / flops_a_step(o.kinds.front(), o);
  return double(o.steps) * (kind.is_dense() ? relative : 1.4 * relative);
}

/// First those of as many steps as `dense`, then those whose time is given.
/// @param done  done(runs, work) is called after each part: with all runs as far as they are, and the work of the part
template <class F>
std::vector<Run> learn_all(const Corpus& corpus, const Examples& held_out, const LearnOptions& o, std::uint64_t seed,
                           const F& done) {
  constexpr Index rounds = 20;
  std::vector<Run> runs(o.kinds.size());
  for (const bool by_time : {false, true}) {
    std::vector<std::size_t> which;
    std::vector<Learner> learners;
    for (std::size_t k = 0; k < o.kinds.size(); ++k) {
      const Kind& kind = o.kinds[k];
      if ((kind.time > 0) != by_time) continue;
      Index steps = o.steps;
      if (by_time) {
        const double step = seconds_a_step_of(kind, runs);
        steps = std::max(1l, std::lround(kind.time * runs.front().seconds() / step));
      }
      which.push_back(k);
      learners.emplace_back(kind, steps, corpus, o, seed);
    }
    for (Index round = 0; round < rounds; ++round) {
      for (std::size_t i = 0; i < learners.size(); ++i) {
        learners[i].learn(round, rounds, held_out);
        Run& run = runs[which[i]] = learners[i].run();
        // timed in turn with what it is held against
        if (by_time) run.seconds_a_step = seconds_a_step_of(run.kind, runs);
        done(runs, work_of(run.kind, o) / double(rounds));
      }
    }
  }
  return runs;
}

}  // namespace moe::bench
