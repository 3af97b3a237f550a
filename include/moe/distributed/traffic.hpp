/// @file  What a rank sent, and where its time went.
#pragma once

#include <chrono>

#include "moe/core/types.hpp"

namespace moe::inline MOE_TARGET::distributed {

/// Sums over the calls of ExpertParallel on one rank. What a rank sends to itself counts in `routes` alone.
struct Traffic {
  Index calls = 0;
  Index columns = 0;  // of tokens, to ranks that hold one of their experts: one each, however many of its experts
  Index answers = 0;  // to ranks whose tokens asked: one for each route, or for each column where they are summed
  Index routes = 0;   // that its experts answered, those of its own tokens among them: its share of the load
  Index bytes = 0;    // of all that, and of the routes
  double seconds_in_experts = 0;   // running this rank's experts, and what their layer did meanwhile
  double seconds_in_exchange = 0;  // the rest: packing, waiting for others, combining

  /// Of other calls, or other ranks.
  Traffic& operator+=(const Traffic& other) {
    calls += other.calls;
    columns += other.columns;
    answers += other.answers;
    routes += other.routes;
    bytes += other.bytes;
    seconds_in_experts += other.seconds_in_experts;
    seconds_in_exchange += other.seconds_in_exchange;
    return *this;
  }
};

/// Time since it was made, and the part of it that is spent in experts.
class Stopwatch {
  using Clock = std::chrono::steady_clock;

 public:
  /// Runs f, on the experts' time.
  template <class F>
  void in_experts(const F& f) {
    const auto start = Clock::now();
    f();
    experts_ += seconds_since(start);
  }
  double experts() const { return experts_; }                           ///< Seconds in in_experts().
  double exchange() const { return seconds_since(start_) - experts_; }  ///< All other seconds since it was made.

 private:
  static double seconds_since(Clock::time_point start) {
    return std::chrono::duration<double>(Clock::now() - start).count();
  }
  Clock::time_point start_ = Clock::now();
  double experts_ = 0;
};

}  // namespace moe::inline MOE_TARGET::distributed
