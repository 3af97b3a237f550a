/// @file  The layer, its dense equivalents, and Eigen by hand, under Google Benchmark:
///
///   layer/<shape>/<weights>/<kind>/tokens:<T>/threads:<N>
///
/// moe_fast permits products of bfloat16 pairs, and of bytes where weights are coded, moe_packed is that of coded
/// weights with rows interleaved, if their type can be, moe_invariant sums in one order at any number of tokens. Of the
/// median call: GFLOP/s, GB/s (bytes of the experts in use), limit_share (the time that the machine's limits allow, by
/// the time taken), bits of a weight, and the error of the sparse layer's answers, by those of float weights. Weights
/// may be coded (q4_k, fp8, …). Weights of several layers are cycled, so that no cache holds them; tokens differ from
/// call to call. All cases take hours: select with --benchmark_filter.
///
///   layer/tiny/<d_model>,<d_ff>,<experts>,<top_k>/<weights>/tokens:1/threads:1
///
/// is one token through a small layer that lies in the caches: nanoseconds of MoeLayer and of loops by hand, medians of
/// rounds in which each has its turn, and the ratio of MoeLayer to the fastest of them.
///
///   layer/gated_or_not/<weights>/tokens:<T>/threads:1
///
/// is a bank of gated experts beside one of experts that are not, of as many bytes: milliseconds of each, medians of
/// calls in turn, and the speed of the second by that of the first.
///
///   layer/one_expert/<weights>/tokens:<T>/threads:1
///
/// is one expert whose weights lie in the caches, fast: GFLOP/s, and the time by these tokens' share of that of the
/// next full block of 64, medians of calls in turn.
#include <any>
#include <exception>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include <benchmark/benchmark.h>

#include "answer_error.hpp"
#include "arena.hpp"
#include "coded_pool.hpp"
#include "contenders.hpp"
#include "gated_or_not.hpp"
#include "limits.hpp"
#include "memory.hpp"
#include "one_expert.hpp"
#include "options.hpp"
#include "timing.hpp"
#include "tiny.hpp"
#include "work.hpp"

namespace {

using namespace moe::bench;
using moe::Index;

constexpr const char* shapes[] = {"mixtral-small", "qwen3-30b-a3b", "olmoe-1b-7b",
                                  "llama4-small",  "gpt-oss-20b",   "mixtral-8x7b"};
constexpr Index token_counts[] = {1, 4, 16, 64, 256, 1024};
constexpr Index max_tokens = 1024;

struct Case {
  std::string shape;
  WeightType weights;
  Kind kind;
  Index tokens, threads;

  std::string name() const {
    return "layer/" + shape + "/" + name_of(weights) + "/" + name_of(kind) + "/tokens:" + std::to_string(tokens) +
           "/threads:" + std::to_string(threads);
  }
};

/// What was last built, for the next case that wants the same. Cases with the same weights follow each other, so one
/// arena at a time is enough, and memory stays bounded.
class Stage {
 public:
  Contender& contender_for(const Case& wanted) {
    const std::string weights = wanted.shape + "/" + name_of(wanted.weights);
    const std::string contender = weights + "/" + name_of(wanted.kind) + "/" + std::to_string(wanted.threads);
    if (contender != contender_name_) {
      contender_name_.clear();
      contender_.reset();
      with_type(wanted.weights, [&]<class W>(std::type_identity<W>) { build<W>(wanted, weights); });
      contender_name_ = contender;
    }
    return *contender_;
  }

  /// Of the answers of its layers.
  double error() const { return error_; }

 private:
  template <class W>
  void build(const Case& wanted, const std::string& weights) {
    if (weights != arena_name_) {
      arena_name_.clear();
      arena_.reset();  // before the next one is made
      const moe::MoeShape& shape = moe::layer_shape(wanted.shape);
      const double bytes = bytes_of(wanted.weights);
      const Index layers = layers_beyond_cache(shape, bytes);
      require_memory(bytes_of_arena(shape, layers, bytes, max_tokens), weights);
      auto arena = make_arena<W>(wanted.weights, shape, layers, wanted.threads, [](double) {});
      error_ = answer_error(arena);
      arena_ = std::move(arena);
      arena_name_ = weights;
    }
    Arena<W> arena = std::any_cast<const Arena<W>&>(arena_);
    arena.threads = wanted.threads;
    contender_ = make_contender(wanted.kind, arena);
  }

  std::string arena_name_, contender_name_;
  std::any arena_;
  double error_ = 0;
  std::unique_ptr<Contender> contender_;
};

/// Measured when they are first asked for.
const Limits& limits_for(Index threads) {
  static std::map<Index, Limits> known;
  if (!known.contains(threads)) known[threads] = measure_limits(threads);
  return known[threads];
}

void run(benchmark::State& state, const Case& wanted, Stage& stage) try {
  const Limits limits = limits_of(wanted.kind, wanted.weights, limits_for(wanted.threads));
  Contender& contender = stage.contender_for(wanted);
  const Index d_model = moe::layer_shape(wanted.shape).d_model;
  Tokens tokens(d_model, max_tokens);
  moe::Matrix<float> y(d_model, wanted.tokens);

  std::vector<double> seconds;
  Work experts, router;
  contender.forward(tokens.next(wanted.tokens), y);  // warms up
  for ([[maybe_unused]] auto _ : state) {
    const auto x = tokens.next(wanted.tokens);
    seconds.push_back(seconds_of([&] { contender.forward(x, y); }));
    experts = experts + contender.experts_work();
    router = router + contender.router_work();
  }
  const double all_seconds = double(seconds.size()) * median(seconds);
  state.counters["GFLOP/s"] = 1e-9 * experts.flops / all_seconds;
  state.counters["GB/s"] = 1e-9 * experts.bytes / all_seconds;
  state.counters["bits"] = 8 * bytes_of(wanted.weights);
  state.counters["error"] = stage.error();
  state.counters["limit_share"] = limit_seconds(experts + router, limits) / all_seconds;
} catch (const std::exception& error) {
  state.SkipWithError(error.what());
}

/// Without UseRealTime, which would put "/real_time" at the end of every name. "Time" is wall time all the same.
void register_all(Stage& stage) {
  const std::set<Index> threads{1, std::min<Index>(2, default_threads()), moe::OpenMp().workers()};
  for (const char* shape : shapes) {
    for (const auto& [weights, name, bits] : weight_types) {
      for (const Kind kind : kinds) {
        if (!takes(kind, weights)) continue;
        for (const Index n : threads) {
          for (const Index tokens : token_counts) {
            const Case wanted{shape, weights, kind, tokens, n};
            benchmark::RegisterBenchmark(wanted.name().c_str(), [wanted, &stage](benchmark::State& state) {
              run(state, wanted, stage);
            })->Unit(benchmark::kMillisecond);
          }
        }
      }
    }
  }
}

/// A round is one iteration; "Time" is that of all contenders together.
template <class W, int d_model, int d_ff, int num_experts, int top_k>
void run_tiny(benchmark::State& state) try {
  const auto tiny = std::make_unique<Tiny<W, d_model, d_ff, num_experts, top_k>>();
  const auto contenders = tiny->contenders();
  std::map<std::string, std::vector<double>> seconds;
  for ([[maybe_unused]] auto _ : state) {
    for (const auto& [name, forward] : contenders) {
      const auto& call = forward;
      seconds[name].push_back(seconds_of([&] {
        for (Index i = 0; i < tiny->tokens; ++i) call(i);
      }));
    }
  }
  tiny->check();
  TinyTimes times;
  for (const auto& [name, all] : seconds) times[name] = 1e9 * median(all) / double(tiny->tokens);
  for (const auto& [name, time] : times) state.counters[name + "_ns"] = time;
  state.counters["ratio"] = ratio(times);
} catch (const std::exception& error) {
  state.SkipWithError(error.what());
}

template <class W, int d_model, int d_ff, int num_experts, int top_k>
void register_tiny(const std::string& weights) {
  std::string name = "layer/tiny/";
  for (const int number : {d_model, d_ff, num_experts}) name += std::to_string(number) + ",";
  name += std::to_string(top_k) + "/" + weights + "/tokens:1/threads:1";
  benchmark::RegisterBenchmark(name.c_str(), run_tiny<W, d_model, d_ff, num_experts, top_k>);
}

template <class W>
void register_all_tiny(const std::string& weights) {
  register_tiny<W, 32, 64, 4, 2>(weights);
  register_tiny<W, 16, 32, 2, 1>(weights);
  register_tiny<W, 30, 50, 4, 2>(weights);
  register_tiny<W, 64, 128, 8, 2>(weights);
  register_tiny<W, 128, 256, 16, 4>(weights);
}

/// A round is one iteration.
template <class W>
void run_gated_or_not(benchmark::State& state, Index tokens) {
  const auto both = std::make_unique<GatedOrNot<W>>(tokens);
  for ([[maybe_unused]] auto _ : state) both->time_both();
  state.counters["gated_ms"] = 1e3 * both->gated();
  state.counters["plain_ms"] = 1e3 * both->plain();
  state.counters["speed"] = both->gated() / both->plain();
}

template <class W>
void register_gated_or_not(const std::string& weights) {
  for (const Index tokens : {1, 16, 64, 256}) {
    const std::string name = "layer/gated_or_not/" + weights + "/tokens:" + std::to_string(tokens) + "/threads:1";
    benchmark::RegisterBenchmark(name.c_str(), run_gated_or_not<W>, tokens)->Unit(benchmark::kMillisecond);
  }
}

/// A round is one iteration.
template <class W>
void run_one_expert(benchmark::State& state, Index tokens) {
  const auto expert = std::make_unique<OneExpert<W>>(tokens);
  for ([[maybe_unused]] auto _ : state) expert->time_both();
  state.counters["GFLOP/s"] = expert->gflops();
  state.counters["excess"] = expert->excess();
}

template <class W>
void register_one_expert(const std::string& weights) {
  for (const Index tokens : {1, 2, 3, 4, 5, 6, 8, 9, 12, 15, 16, 17, 20, 24, 28, 32, 33, 40, 48, 49, 56, 64, 65, 96}) {
    const std::string name = "layer/one_expert/" + weights + "/tokens:" + std::to_string(tokens) + "/threads:1";
    benchmark::RegisterBenchmark(name.c_str(), run_one_expert<W>, tokens)->Unit(benchmark::kMillisecond);
  }
}

}  // namespace

int main(int argc, char** argv) {
  Stage stage;
  register_all(stage);
  register_all_tiny<float>("f32");
  register_all_tiny<moe::bfloat16>("bf16");
  register_gated_or_not<float>("f32");
  register_gated_or_not<moe::bfloat16>("bf16");
  register_one_expert<float>("f32");
  register_one_expert<moe::bfloat16>("bf16");
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
}
