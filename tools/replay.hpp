/// @file  A recorded run once more, with the experts of a model's files.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include <moe/core/dispatch.hpp>
#include <moe/core/random_number.hpp>
#include <moe/core/routing.hpp>
#include <moe/core/types.hpp>
#include <moe/experts/any_experts.hpp>
#include <moe/io/checkpoint.hpp>
#include <moe/io/expert_store.hpp>
#include <moe/io/store/plan.hpp>
#include <moe/io/store/policies.hpp>
#include <moe/io/store/trace.hpp>
#include <moe/runtime/workers.hpp>

namespace moe::tools {

/// What a run did and took, of the calls that count.
struct Replayed {
  Index hits = 0, misses = 0;
  double bytes_read = 0, seconds = 0;

  double hit_rate() const { return double(hits) / double(std::max<Index>(hits + misses, 1)); }
};

/// The experts of a model's layers in a store, called as a trace says: with tokens and weights of no meaning, for what
/// is computed costs the same.
class Replay {
 public:
  /// @throws io::Error as ExpertStore and load_parts().
  Replay(const std::string& model, Index memory, io::AnyPolicy policy, ExecutorRef executor)
      : store_(model, {.memory = std::size_t(memory), .policy = std::move(policy)}), executor_(executor) {
    for (const std::string& block : store_.moe_blocks()) {
      groups_.push_back(*io::load_parts<float>(store_, block).experts);
    }
  }

  /// Calls [first, last) of the trace.
  Replayed run(const io::Trace& trace, Index first, Index last) {
    const io::StoreStats before = store_.stats();
    const auto start = std::chrono::steady_clock::now();
    for (Index c = first; c < last; ++c) call(trace, trace.calls[std::size_t(c)]);
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    const io::StoreStats after = store_.stats();
    return {Index(after.hits - before.hits), Index(after.misses - before.misses),
            double(after.bytes_read - before.bytes_read), seconds};
  }

 private:
  void call(const io::Trace& trace, const io::Trace::Call& call) {
    const AnyExperts<float>& group = groups_[std::size_t(call.layer)];
    routing_.clear();
    Index tokens = 0, last = -1;
    for (Index r = call.begin; r < call.end; ++r) {
      if (tokens == 0 || trace.token[std::size_t(r)] != last) last = trace.token[std::size_t(r)], ++tokens;
      const Index expert = trace.expert[std::size_t(r)];
      if (expert < group.num_experts()) routing_.add(tokens - 1, expert, 0.125F);
    }
    if (x_.rows() != group.d_model() || x_.cols() < tokens) {
      x_ = Matrix<float>::NullaryExpr(group.d_model(), tokens, [](Index i, Index t) {
        return random_number(/*seed=*/7, std::uint64_t(t) << 32 | std::uint64_t(i));
      });
      y_ = Matrix<float>::Zero(group.d_model(), tokens);
    }
    const auto plan = plan_dispatch(routing_, tokens, group.num_experts(), plan_memory_);
    Workers workers(executor_, scratch_);
    group.apply(x_.leftCols(tokens), plan, y_.leftCols(tokens), workers);
  }

  io::ExpertStore store_;
  ExecutorRef executor_;
  std::vector<AnyExperts<float>> groups_;
  Routing<float> routing_;
  PlanMemory<float> plan_memory_;
  CallScratch scratch_;
  Matrix<float> x_, y_;
};

/// Bytes of experts a second that are computed where they are in memory: of the first calls of a trace, as many as use
/// no more than this memory, the second time.
/// @throws io::Error as Replay.
inline double measure_compute(const std::string& model, const io::Trace& trace, const io::ExpertBytes& bytes,
                              Index memory, ExecutorRef executor) {
  std::vector<io::ExpertId> experts, used;
  double all = 0, computed = 0;
  Index last = 0;
  for (; last < std::ssize(trace.calls); ++last) {
    trace.experts_of(trace.calls[std::size_t(last)], used);
    double its = 0, more = 0;
    for (const io::ExpertId& id : used) {
      const auto& layer = bytes[std::size_t(id.layer)];
      const double size = id.expert < std::ssize(layer) ? double(layer[std::size_t(id.expert)]) : 0;
      its += size;
      if (std::ranges::find(experts, id) == experts.end()) more += size, experts.push_back(id);
    }
    if (last > 0 && all + more > 0.9 * double(memory)) break;
    all += more, computed += its;
  }
  Replay replay(model, memory, io::Lru(), executor);
  replay.run(trace, 0, last);
  double best = 0;
  for (int round = 0; round < 3; ++round) best = std::max(best, computed / replay.run(trace, 0, last).seconds);
  return best;
}

}  // namespace moe::tools
