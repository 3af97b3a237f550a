#include "moe/runtime/workspace.hpp"

#include <atomic>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "errors.hpp"
#include "moe/layers/any_layer.hpp"
#include "moe/layers/moe_layer.hpp"
#include "moe/train/parameter_pieces.hpp"
#include "pools.hpp"

namespace {

using namespace moe;
using moe::test::error_of;

constexpr Index d_model = 4;

/// Waits inside of forward() until it may go on.
struct Gate {
  std::atomic<bool> is_reached = false, is_open = false;

  void pass() {
    is_reached = true;
    is_reached.notify_all();
    is_open.wait(false);
  }
  void await() const { is_reached.wait(false); }
  void open() {
    is_open = true;
    is_open.notify_all();
  }
};

struct Copying {
  using Scalar = float;
  Gate* gate = nullptr;
  bool throws = false;

  Index d_model() const { return ::d_model; }
  void forward(const ConstMatrixRef<float>& x, MatrixRef<float> y, Scratch&) const {
    if (gate) gate->pass();
    if (throws) throw std::runtime_error("an expert failed");
    y = x;
  }
};

struct ToTheFirst {
  using Scalar = float;
  Index d_model() const { return ::d_model; }
  Index num_experts() const { return 1; }
  void route(const ConstMatrixRef<float>& x, Routing<float>& routing, Workers&) const {
    for (Index t = 0; t < x.cols(); ++t) routing.add(t, 0, 1);
  }
};

MoeLayer<ToTheFirst, ExpertList<Copying>> layer_of(Copying expert) { return {ToTheFirst{}, std::vector{expert}}; }

constexpr const char* told =
    "Workspace: two calls use it at once, expected one at a time: give each thread a workspace (or tape) of its own";

const Matrix<float> x = Matrix<float>::Constant(d_model, 3, 2);

}  // namespace

TEST(Workspace, OfACallThatRunsIsRefusedToASecondOne) {
  Gate gate;
  const auto waits = layer_of({.gate = &gate}), passes = layer_of({});
  Workspace<float> ws;
  Matrix<float> y(d_model, 3), z(d_model, 3);
  std::thread first([&] { waits.forward(x, y, ws); });
  gate.await();
  EXPECT_EQ(error_of<std::logic_error>([&] { passes.forward(x, z, ws); }), told);
  EXPECT_EQ(error_of<std::logic_error>([&] { passes.forward(x, z, ws, test::OwnThreads{2}); }), told);
  gate.open();
  first.join();
  EXPECT_EQ(y, x);           // the first call's answer is unharmed,
  passes.forward(x, z, ws);  // and now the workspace is free
  EXPECT_EQ(z, x);
}

TEST(Workspace, OfManyThreadsGivesTrueAnswersOrIsRefused) {
  const auto layer = layer_of({});
  Workspace<float> ws;
  std::atomic<int> answered = 0, refused = 0, wrong = 0;
  const auto call = [&] {
    Matrix<float> y(d_model, 3);
    for (int i = 0; i < 2000; ++i) {
      try {
        layer.forward(x, y, ws);
        ++answered;
        if (y != x) ++wrong;
      } catch (const std::logic_error& error) {
        ++refused;
        if (error.what() != std::string(told)) ++wrong;
      }
    }
  };
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) threads.emplace_back(call);
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(answered + refused, 8000);
  EXPECT_GT(answered, 0);
  EXPECT_EQ(wrong, 0);
}

TEST(Workspace, IsFreeAfterACallThatThrew) {
  Workspace<float> ws;
  Matrix<float> y(d_model, 3);
  EXPECT_EQ(error_of<std::runtime_error>([&] { layer_of({.throws = true}).forward(x, y, ws); }), "an expert failed");
  EXPECT_EQ(error_of([&] { layer_of({}).forward(x.topRows(2), y, ws); }), "MoeLayer: x.rows() is 2, expected 4");
  layer_of({}).forward(x, y, ws);
  EXPECT_EQ(y, x);
}

TEST(Workspace, ThatIsCopiedOrMovedIsFree) {
  Workspace<float> ws;
  Matrix<float> y(d_model, 3);
  layer_of({}).forward(x, y, ws);
  Workspace<float> copied = ws, moved = std::move(ws);
  layer_of({}).forward(x, y, copied);
  layer_of({}).forward(x, y, moved);
  copied = moved;
  moved = std::move(copied);
  layer_of({}).forward(x, y, moved);
  EXPECT_EQ(moved.routing.size(), 3);
  EXPECT_EQ(y, x);
}

namespace {

/// Says it has two workers, and gives the work to another.
struct Strange {
  Index worker;

  Index workers() const { return 2; }
  void for_each(Index n, const Task& task) const {
    for (Index i = 0; i < n; ++i) task(i, worker);
  }
};

/// The same on threads.
struct StrangeThreads {
  test::OwnThreads threads{2};

  Index workers() const { return 2; }
  void for_each(Index n, const Task& task) const {
    const auto run = [&](Index i, Index) { task(i, 2); };
    threads.for_each(n, Task(run));
  }
};

}  // namespace

TEST(Workers, RefuseAWorkerThatIsNone) {
  for (const Index worker : {-1, 2, 3}) {
    std::vector<Scratch> memory;
    const Strange executor{worker};
    Workers workers(executor, memory);
    EXPECT_EQ(error_of([&] { workers.for_each(5, [](Index, Scratch&) {}); }),
              "Executor: task(i, worker) was called with worker " + std::to_string(worker) +
                  ", expected 0 to 1, below its workers()");
  }
}

TEST(Executors, WithoutAWorkerAreRefusedByWhoeverTakesOne) {
  for (const Index number : {0, -1}) {
    const test::OwnThreads nobody{number};
    const std::string expected = "Executor: workers() is " + std::to_string(number) + ", expected at least 1";
    std::vector<Scratch> memory;
    Workspace<float> ws;
    Matrix<float> y(d_model, 3);
    EXPECT_EQ(error_of([&] { Workers(nobody, memory); }), expected);
    EXPECT_EQ(error_of([&] { layer_of({}).forward(x, y, ws, nobody); }), expected);
    EXPECT_EQ(error_of([&] { AnyLayer<float>(layer_of({})).forward(x, y, ws, nobody); }), expected);
    EXPECT_EQ(error_of([&] { set_to_zero(std::vector<Parameter<float>>(), nobody); }), expected);
  }
}

TEST(Workers, CarryThatToTheCallerFromAnyThread) {
  std::vector<Scratch> memory;
  const StrangeThreads executor;
  Workers workers(executor, memory);
  EXPECT_EQ(error_of([&] { workers.for_each(1000, [](Index, Scratch&) {}); }),
            "Executor: task(i, worker) was called with worker 2, expected 0 to 1, below its workers()");
}
