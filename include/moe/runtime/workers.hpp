/// @file  The threads of one call, each with a scratch of its own.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "moe/core/check.hpp"
#include "moe/core/concepts.hpp"
#include "moe/core/contracts.hpp"
#include "moe/core/numerics.hpp"
#include "moe/core/scratch.hpp"
#include "moe/core/task.hpp"
#include "moe/core/types.hpp"
#include "moe/runtime/meanwhile.hpp"

namespace moe::inline MOE_TARGET {

/// Any executor, not owned: what a function takes that does not care which.
class ExecutorRef {
 public:
  /// @param executor  outlives it
  /// @throws std::invalid_argument unless it has a worker.
  template <class X>
    requires(Executor<std::remove_reference_t<X>> && !std::same_as<std::remove_cvref_t<X>, ExecutorRef>)
  ExecutorRef(X&& executor)
      : executor_(const_cast<void*>(static_cast<const void*>(&executor))),
        workers_(executor.workers()),
        for_each_([](void* x, Index n, const Task& task) {
          static_cast<std::remove_reference_t<X>*>(x)->for_each(n, task);
        }) {
    require_at_least(1, workers_, "Executor: workers()");
  }

  /// Names what an executor lacks; what has neither of its members is none, and no candidate here.
  template <class X>
    requires(!Executor<std::remove_reference_t<X>> && (detail::HasWorkers<X> || detail::RunsTasks<X>))
  ExecutorRef(X&&) {
    static_assert(is_executor<std::remove_reference_t<X>>());
  }

  Index workers() const { return workers_; }
  /// Runs task(i, worker) for each i in [0, n), as the executor does.
  void for_each(Index n, const Task& task) const { for_each_(executor_, n, task); }

 private:
  void* executor_;
  Index workers_;
  void (*for_each_)(void*, Index, const Task&);
};

/// What one call of a layer has to work with. Routers and groups of experts get it from the layer.
class Workers {
 public:
  /// @param scratch    kept by the caller from call to call, so that a warm call allocates nothing
  /// @param seed       see seed()
  /// @param meanwhile  see work_meanwhile()
  /// @throws std::logic_error if another call holds this scratch.
  Workers(ExecutorRef executor, CallScratch& scratch, const Numerics& numerics = {},
          std::optional<std::uint64_t> seed = {}, Meanwhile* meanwhile = nullptr)
      : hold_(std::in_place, scratch),
        executor_(executor),
        scratch_(hold_->each()),
        numerics_(numerics),
        seed_(seed),
        meanwhile_(meanwhile) {
    make_room();
  }

  /// The same, and nobody watches that one call at a time uses this scratch.
  Workers(ExecutorRef executor, std::vector<Scratch>& scratch, const Numerics& numerics = {},
          std::optional<std::uint64_t> seed = {}, Meanwhile* meanwhile = nullptr)
      : executor_(executor), scratch_(scratch), numerics_(numerics), seed_(seed), meanwhile_(meanwhile) {
    make_room();
  }

  Index count() const { return executor_.workers(); }  ///< How many may run at once: tasks see workers 0 … count() − 1.

  /// What the caller has chosen for this call.
  const Numerics& numerics() const { return numerics_; }

  /// For what is drawn at random while a layer learns, another one for each step: SideInputs::seed.
  std::optional<std::uint64_t> seed() const { return seed_; }

  /// For experts that would wait for others: does what else the layer has to do, if it has laid out something.
  void work_meanwhile() {
    if (meanwhile_) meanwhile_->work(*this);
  }

  /// Memory that all workers may see; it lives as long as this call. Take from it outside of for_each().
  Scratch& shared() { return scratch_[0]; }

  /// Runs task(i, scratch) for each i in [0, n); the task finds the scratch empty, and nobody else uses it meanwhile.
  /// @throws std::invalid_argument if the executor gives a task to a worker that is none of its workers().
  template <class F>
  void for_each(Index n, const F& task) {
    const auto run = [&](Index i, Index worker) {
      if (worker < 0 || worker >= count()) refuse(worker);
      Scratch& scratch = scratch_[std::size_t(worker) + 1];
      scratch.reset();
      task(i, scratch);
    };
    if (n <= 1 || count() == 1) {
      for (Index i = 0; i < n; ++i) run(i, 0);
    } else {
      executor_.for_each(n, Task(run));
    }
  }

  /// Cuts [0, n) into one contiguous band per worker, each a multiple of `grain` long (but the last), and runs
  /// task(first, last, scratch) for each that is not empty.
  template <class F>
  void for_each_band(Index n, Index grain, const F& task) {
    if (count() == 1) {  // needs no division
      return for_each(n > 0 ? 1 : 0, [&](Index, Scratch& scratch) { task(Index(0), n, scratch); });
    }
    const Index grains = (n + grain - 1) / grain, bands = std::min(count(), grains);
    const auto cut = [&](Index b) { return b == 0 ? 0 : b == bands ? n : grains * b / bands * grain; };
    for_each(bands, [&](Index b, Scratch& scratch) { task(cut(b), cut(b + 1), scratch); });
  }

 private:
  void make_room() {
    const auto needed = std::size_t(executor_.workers()) + 1;
    if (scratch_.size() < needed) scratch_.resize(needed);
    shared().reset();
    // Which worker gets which task is chance: what one of them needed last time, another may need next time.
    std::size_t largest = 0;
    for (std::size_t w = 1; w < scratch_.size(); ++w) largest = std::max(largest, scratch_[w].capacity());
    for (std::size_t w = 1; w < scratch_.size(); ++w) scratch_[w].reset(largest);
  }

  [[noreturn]] void refuse(Index worker) const {
    throw std::invalid_argument("Executor: task(i, worker) was called with worker " + std::to_string(worker) +
                                ", expected 0 to " + std::to_string(count() - 1) + ", below its workers()");
  }

  std::optional<CallScratch::Hold> hold_;  // first, so that nothing is touched before
  ExecutorRef executor_;
  std::vector<Scratch>& scratch_;
  Numerics numerics_;
  std::optional<std::uint64_t> seed_;
  Meanwhile* meanwhile_;
};

}  // namespace moe::inline MOE_TARGET
