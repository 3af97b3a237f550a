/// @file  What every executor must do, as a suite to run on a thread pool of your own.
///
///   #include "laws/executor_laws.hpp"
///   struct MyExecutors {
///     static MyExecutor make(moe::Index workers);  // about that many
///   };
///   namespace moe::laws { INSTANTIATE_TYPED_TEST_SUITE_P(Mine, ExecutorLaws, MyExecutors); }
#pragma once

#include <atomic>
#include <stdexcept>
#include <vector>

#include <gtest/gtest.h>

#include "compare.hpp"
#include "moe/core/concepts.hpp"
#include "moe/experts/function_expert.hpp"
#include "moe/layers/moe_layer.hpp"
#include "moe/routers/linear_top_k.hpp"
#include "moe/runtime/executors/serial.hpp"
#include "random.hpp"

namespace moe::laws {

inline constexpr Index worker_counts[] = {1, 2, 3, 5, 8};

template <class Factory>
class ExecutorLaws : public testing::Test {
 public:
  static_assert(Executor<decltype(Factory::make(Index(1)))>);
};
TYPED_TEST_SUITE_P(ExecutorLaws);

TYPED_TEST_P(ExecutorLaws, RunsEachTaskOnce) {
  for (const Index workers : worker_counts) {
    auto executor = TypeParam::make(workers);
    ASSERT_GE(Index(executor.workers()), 1);
    for (const Index n : {0, 1, 2, 3, 7, 8, 9, 1000}) {
      std::vector<std::atomic<int>> runs(static_cast<std::size_t>(n));
      const auto count = [&](Index i, Index) { ++runs.at(std::size_t(i)); };
      executor.for_each(n, Task(count));
      for (const auto& times : runs) EXPECT_EQ(times, 1) << n << " tasks, " << workers << " workers";
    }
  }
}

TYPED_TEST_P(ExecutorLaws, NoTwoTasksShareAWorker) {
  for (const Index workers : worker_counts) {
    auto executor = TypeParam::make(workers);
    const auto num_workers = static_cast<std::size_t>(executor.workers());
    std::vector<std::atomic<bool>> busy(num_workers);
    std::atomic<int> shared{0}, outside{0};
    const auto task = [&](Index, Index worker) {
      if (worker < 0 || worker >= Index(num_workers)) {
        ++outside;
        return;
      }
      if (busy[std::size_t(worker)].exchange(true)) ++shared;
      for (int wait = 0; wait < 100; ++wait) shared.load();
      busy[std::size_t(worker)] = false;
    };
    executor.for_each(500, Task(task));
    EXPECT_EQ(shared, 0) << workers << " workers";
    EXPECT_EQ(outside, 0) << workers << " workers";
  }
}

TYPED_TEST_P(ExecutorLaws, ShowsTheCallerWhatTheTasksWrote) {
  for (const Index workers : worker_counts) {
    auto executor = TypeParam::make(workers);
    std::vector<Index> square(100, -1);  // not atomic: for_each() itself has to order the writes before the reads
    for (Index round = 1; round <= 3; ++round) {
      const auto write = [&](Index i, Index) { square[std::size_t(i)] = round * i * i; };
      executor.for_each(100, Task(write));
      for (Index i = 0; i < 100; ++i) EXPECT_EQ(square[std::size_t(i)], round * i * i);
    }
  }
}

TYPED_TEST_P(ExecutorLaws, BringsAnErrorToTheCallerOnce) {
  for (const Index workers : worker_counts) {
    auto executor = TypeParam::make(workers);
    for (const Index n : {1, 2, 50}) {
      for (const bool all_throw : {false, true}) {
        const auto fail = [&](Index i, Index) {
          if (all_throw || i == n - 1) throw std::runtime_error("task failed");
        };
        int caught = 0;
        try {
          executor.for_each(n, Task(fail));
        } catch (const std::runtime_error& error) {
          EXPECT_STREQ(error.what(), "task failed");
          ++caught;
        }
        EXPECT_EQ(caught, 1) << n << " tasks, " << workers << " workers";
      }
    }
    std::atomic<int> runs{0};
    const auto count = [&](Index, Index) { ++runs; };
    executor.for_each(20, Task(count));
    EXPECT_EQ(runs, 20) << "after an error, all is as before";
  }
}

TYPED_TEST_P(ExecutorLaws, ChangesNoBitOfALayer) {
  const Index d_model = 19, num_experts = 5;
  const auto make_expert = [&](Index e) {
    return expert_from<float>(
        d_model, [factor = float(e + 1)](const auto& x, auto y) { y = (factor * x.array()).sin().matrix(); });
  };
  std::vector<decltype(make_expert(0))> experts;
  for (Index e = 0; e < num_experts; ++e) experts.push_back(make_expert(e));
  const MoeLayer layer(LinearTopK<float>(test::random_matrix<Weight<float>>(num_experts, d_model, 1), {.top_k = 3}),
                       experts);
  for (const Index num_tokens : {0, 1, 7, 40}) {
    const auto x = test::random_matrix<Matrix<float>>(d_model, num_tokens, 2);
    const auto serial = layer.forward(x);
    for (const Index workers : worker_counts) {
      auto executor = TypeParam::make(workers);
      EXPECT_TRUE(test::same_bits(layer.forward(x, executor), serial)) << num_tokens << " tokens, " << workers;
    }
  }
}

REGISTER_TYPED_TEST_SUITE_P(ExecutorLaws, RunsEachTaskOnce, NoTwoTasksShareAWorker, ShowsTheCallerWhatTheTasksWrote,
                            BringsAnErrorToTheCallerOnce, ChangesNoBitOfALayer);

}  // namespace moe::laws
