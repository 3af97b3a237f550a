/// @file  What a decision costs: every router, under Google Benchmark:
///
///   routing/<router>/experts:<E>/tokens:<T>/threads:<N>   with d_model 2048
///   share/<router>/tokens:<T>/threads:<N>                 beside the experts of qwen3-30b-a3b, in turns
///
/// Of the median call. share_of_layer is the router's time by that of router, dispatch and experts together.
#include <exception>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include <benchmark/benchmark.h>

#include "arena.hpp"
#include "contenders.hpp"
#include "memory.hpp"
#include "moe/runtime/executors/openmp.hpp"
#include "moe/runtime/workspace.hpp"
#include "routers.hpp"
#include "timing.hpp"

namespace {

using namespace moe::bench;
using moe::Index;

constexpr Index expert_counts[] = {8, 64, 256, 512};
constexpr Index token_counts[] = {1, 64, 4096};
constexpr const char* layer_of_shares = "qwen3-30b-a3b";
constexpr Index tokens_of_shares = 256;

/// One router with all that a call of it needs.
class RouterAlone {
 public:
  RouterAlone(const NamedRouter& named, const RouterShape& shape, Index num_tokens, Index threads)
      : router_(named.make(shape)),
        x_(moe::random_tokens<float>(shape.d_model, num_tokens, 1)),
        side_(shape.num_experts, num_tokens),
        executor_(threads) {
    call();  // warms up
    recorded_ = ws_.routing;
    call();
  }

  void call() {
    moe::Workers workers(executor_, ws_.scratch);
    ws_.routing.clear();
    moe::SideInputs<float> side = side_.inputs();
    if (recorded_.size() > 0) side.recorded = &recorded_;
    router_.route(moe::Tokens(x_, side), ws_.routing, workers);
  }

 private:
  moe::AnyRouter<float> router_;
  moe::Matrix<float> x_;
  SideData side_;
  moe::OpenMp executor_;
  moe::Workspace<float> ws_;
  moe::Routing<float> recorded_;  // what Replay replays
};

void run_alone(benchmark::State& state, const NamedRouter& named, const RouterShape& shape, Index tokens,
               Index threads) try {
  RouterAlone router(named, shape, tokens, threads);
  std::vector<double> seconds;
  for ([[maybe_unused]] auto _ : state) seconds.push_back(seconds_of([&] { router.call(); }));
  state.counters["us/token"] = 1e6 * median(seconds) / double(tokens);
} catch (const std::exception& error) {
  state.SkipWithError(error.what());
}

/// The layer is built when it is first asked for: 2.4 GB.
Contender& layer_for(Index threads) {
  static std::map<Index, std::unique_ptr<Contender>> layers;
  static Arena<float> arena;
  if (!arena.pool) {
    const moe::MoeShape& shape = moe::layer_shape(layer_of_shares);
    require_memory(bytes_of_arena(shape, 1, sizeof(float), tokens_of_shares), layer_of_shares);
    arena = make_arena<float>(shape, 1, threads, [](double) {});
  }
  arena.threads = threads;
  if (!layers[threads]) layers[threads] = make_contender(Kind::moe, arena);
  return *layers[threads];
}

void run_share(benchmark::State& state, const NamedRouter& named, Index threads) try {
  const moe::MoeShape& shape = moe::layer_shape(layer_of_shares);
  Contender& layer = layer_for(threads);
  RouterAlone router(named, {shape.d_model, shape.num_experts, shape.top_k}, tokens_of_shares, threads);
  Tokens tokens(shape.d_model, tokens_of_shares);
  moe::Matrix<float> y(shape.d_model, tokens_of_shares);
  layer.forward(tokens.next(tokens_of_shares), y);
  std::vector<double> of_router, of_layer;
  for ([[maybe_unused]] auto _ : state) {
    const auto x = tokens.next(tokens_of_shares);
    of_layer.push_back(seconds_of([&] { layer.forward(x, y); }));
    for (int i = 0; i < 5; ++i) of_router.push_back(seconds_of([&] { router.call(); }));
  }
  state.counters["us/token"] = 1e6 * median(of_router) / double(tokens_of_shares);
  state.counters["share_of_layer"] = median(of_router) / median(of_layer);
} catch (const std::exception& error) {
  state.SkipWithError(error.what());
}

std::string of_tokens_and_threads(Index tokens, Index threads) {
  return "/tokens:" + std::to_string(tokens) + "/threads:" + std::to_string(threads);
}

void register_all() {
  const std::set<Index> threads{1, moe::OpenMp().workers()};
  for (const NamedRouter& router : all_routers()) {
    for (const Index n : threads) {
      for (const Index experts : expert_counts) {
        const RouterShape shape{.d_model = 2048, .num_experts = experts, .top_k = std::min<Index>(8, experts / 4)};
        for (const Index tokens : token_counts) {
          const std::string name =
              "routing/" + router.name + "/experts:" + std::to_string(experts) + of_tokens_and_threads(tokens, n);
          benchmark::RegisterBenchmark(name.c_str(), [=](benchmark::State& state) {
            run_alone(state, router, shape, tokens, n);
          })->Unit(benchmark::kMicrosecond);
        }
      }
    }
  }
  for (const Index n : threads) {
    for (const NamedRouter& router : all_routers()) {
      const std::string name = "share/" + router.name + of_tokens_and_threads(tokens_of_shares, n);
      benchmark::RegisterBenchmark(name.c_str(), [=](benchmark::State& state) { run_share(state, router, n); })
          ->Unit(benchmark::kMillisecond)
          ->Iterations(5);
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  register_all();
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
}
