/// @file  Does the speed hold? When tokens crowd at some experts, when there are more experts, and on the first call.
///
/// Everything is timed in turns; what is printed are shares of the machine's limit in this run, and ratios.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <exception>
#include <functional>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#if defined(__linux__)
#include <sys/resource.h>
#endif

#include <CLI/CLI.hpp>

#include "arena.hpp"
#include "limits.hpp"
#include "moe/core/dispatch.hpp"
#include "moe/layers/moe_layer.hpp"
#include "moe/models/presets.hpp"
#include "moe/runtime/executors/openmp.hpp"
#include "options.hpp"
#include "parse.hpp"
#include "timing.hpp"
#include "work.hpp"

namespace {

using namespace moe::bench;
using moe::Index;

constexpr const char* shapes[] = {"mixtral-small", "qwen3-30b-a3b", "olmoe-1b-7b", "llama4-small"};

/// How often each expert is wanted.
struct Skew {
  const char* name;
  std::function<double(Index expert, Index num_experts)> wanted;
};
const Skew skews[] = {
    {"even", [](Index, Index) { return 1.0; }},
    {"half of the experts empty", [](Index e, Index) { return e % 2 == 0 ? 1.0 : 0.0; }},
    {"Zipf", [](Index e, Index) { return 1.0 / double(e + 1); }},
    {"all to one expert", [](Index e, Index) { return e == 0 ? 1.0 : 0.0; }},
};

/// Each token draws top_k experts, one after the other; the same one may come twice.
moe::Routing<float> draw_routes(const Skew& skew, const moe::MoeShape& shape, Index tokens) {
  std::vector<double> up_to(std::size_t(shape.num_experts));
  double total = 0;
  for (Index e = 0; e < shape.num_experts; ++e) up_to[std::size_t(e)] = total += skew.wanted(e, shape.num_experts);
  moe::Routing<float> routing;
  for (Index r = 0; r < tokens * shape.top_k; ++r) {
    const double drawn = total * (0.5 + 0.5 * double(random_number(std::uint32_t(r))));
    const auto chosen = std::upper_bound(up_to.begin(), up_to.end(), std::min(drawn, total * (1 - 1e-9)));
    routing.add(r / shape.top_k, chosen - up_to.begin(), 0.5F);
  }
  return routing;
}

/// The experts of several layers under one plan, again and again.
template <class W>
class Experts {
 public:
  Experts(const Arena<W>& arena, const moe::Routing<float>& routing, Index tokens)
      : x_(random_tokens(arena.shape.d_model, tokens)),
        y_(moe::Matrix<float>::Zero(x_.rows(), tokens)),
        executor_(arena.threads) {
    for (Index l = 0; l < arena.num_layers(); ++l) layers_.push_back(experts_of(arena, l));
    plan_ = plan_dispatch(routing, tokens, arena.shape.num_experts, memory_);
    Index used = 0;
    for (Index e = 0; e < plan_.num_experts(); ++e) used += plan_.count(e) > 0;
    work_ = gated_ffn_work(arena.shape.d_model, arena.shape.d_ff, sizeof(W), used, plan_.num_slots());
  }

  double seconds() {
    const auto& layer = layers_[turn_++ % layers_.size()];
    return seconds_of([&] {
      moe::Workers workers(executor_, scratch_);
      layer.apply(x_, plan_, y_, workers);
    });
  }
  const Work& work() const { return work_; }

 private:
  moe::Matrix<float> x_, y_;
  moe::OpenMp executor_;
  std::vector<moe::GatedFfnBank<W>> layers_;
  moe::PlanMemory<float> memory_;
  moe::DispatchPlan<float> plan_;
  std::vector<moe::Scratch> scratch_;
  Work work_;
  std::size_t turn_ = 0;
};

template <class T>
std::vector<double> medians_in_turn(std::vector<std::unique_ptr<T>>& things, double budget) {
  std::vector<std::function<double()>> calls;
  for (auto& thing : things) calls.emplace_back([&thing] { return thing->seconds(); });
  std::vector<double> medians;
  for (auto& seconds : time_in_turn(calls, budget)) medians.push_back(median(seconds));
  return medians;
}

template <class W>
void measure_skew(const Limits& limits, Index threads, double budget) {
  std::printf("\nSkew: share of the limit, and against even routing\n");
  for (const char* name : shapes) {
    const moe::MoeShape& shape = moe::layer_shape(name);
    const auto arena = make_arena<W>(shape, layers_beyond_cache(shape, sizeof(W)), threads, [](double) {});
    for (const Index tokens : {16, 64, 256, 1024}) {
      std::vector<std::unique_ptr<Experts<W>>> experts;
      for (const Skew& skew : skews)
        experts.push_back(std::make_unique<Experts<W>>(arena, draw_routes(skew, shape, tokens), tokens));
      const auto seconds = medians_in_turn(experts, budget);
      const auto share = [&](std::size_t i) { return limit_seconds(experts[i]->work(), limits) / seconds[i]; };
      std::printf("  %-14s %5d tokens:", name, int(tokens));
      for (std::size_t i = 0; i < experts.size(); ++i)
        std::printf("  %s %.2f (%.2f)", skews[i].name, share(i), share(i) / share(0));
      std::printf("\n");
      std::fflush(stdout);
    }
  }
}

/// A layer of so many experts, with its router, on one token.
template <class W>
class OneToken {
 public:
  OneToken(const moe::MoeShape& shape, Index threads)
      : arena_(make_arena<W>(shape, layers_beyond_cache(shape, sizeof(W)), threads, [](double) {})),
        x_(random_tokens(shape.d_model, 64)),
        y_(shape.d_model, 1),
        executor_(threads) {
    for (Index l = 0; l < arena_.num_layers(); ++l) layers_.emplace_back(router_of(shape, l), experts_of(arena_, l));
  }

  double seconds() {
    const auto& layer = layers_[turn_ % layers_.size()];
    const auto token = x_.col(Index(turn_++ % 64));
    return seconds_of([&] { layer.forward(token, y_, ws_, executor_); });
  }

 private:
  Arena<W> arena_;
  moe::Matrix<float> x_, y_;
  moe::OpenMp executor_;
  std::vector<moe::MoeLayer<moe::LinearTopK<float>, moe::GatedFfnBank<W>>> layers_;
  moe::Workspace<float> ws_;
  std::size_t turn_ = 0;
};

template <class W>
void measure_num_experts(Index threads, double budget) {
  std::printf("\nMore experts, 8 of them active (d_model 1024, d_ff 512, one token): time, and against 8 experts\n ");
  std::vector<std::unique_ptr<OneToken<W>>> layers;
  const Index counts[] = {8, 32, 128, 512};
  for (const Index count : counts) {
    layers.push_back(std::make_unique<OneToken<W>>(
        moe::MoeShape{
            .d_model = 1024, .d_ff = 512, .num_experts = count, .top_k = 8, .router = moe::TopKOptions{.top_k = 8}},
        threads));
  }
  const auto seconds = medians_in_turn(layers, budget);
  for (std::size_t i = 0; i < layers.size(); ++i)
    std::printf("  %d experts %.3f ms (%.2f)", int(counts[i]), 1e3 * seconds[i], seconds[i] / seconds[0]);
  std::printf("\n");
}

#if defined(__linux__)
long page_faults() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return usage.ru_minflt + usage.ru_majflt;
}

/// What a page fault of this process costs: fresh memory, written once a page.
double seconds_of_a_fault() {
  const std::size_t pages = 4096, page = 4096;
  const long before = page_faults();
  const double seconds = seconds_of([&] {
    const std::unique_ptr<char[]> memory(new char[pages * page]);
    for (std::size_t p = 0; p < pages; ++p) const_cast<volatile char*>(memory.get())[p * page] = 1;
  });
  return seconds / double(std::max<long>(1, page_faults() - before));
}

template <class W>
void measure_cold(Index threads) {
  std::printf("\nThe first call of a layer against later ones, and without its page faults\n");
  const moe::MoeShape& shape = moe::layer_shape("qwen3-30b-a3b");
  const auto arena = make_arena<W>(shape, layers_beyond_cache(shape, sizeof(W)), threads, [](double) {});
  const double a_fault = seconds_of_a_fault();
  for (const Index tokens : {1, 64, 1024}) {
    const auto x = random_tokens(shape.d_model, tokens);
    std::vector<double> warm;
    double cold = 0, faults = 0;
    for (Index l = 0; l < 2 * arena.num_layers(); ++l) {
      const moe::MoeLayer layer(router_of(shape, l % arena.num_layers()), experts_of(arena, l % arena.num_layers()));
      moe::Workspace<float> ws;
      moe::Matrix<float> y(x.rows(), tokens);
      y.setZero();
      const moe::OpenMp executor(threads);
      const long before = page_faults();
      const double first = seconds_of([&] { layer.forward(x, y, ws, executor); });
      if (l == 0) {
        cold = first;
        faults = double(page_faults() - before);
      }
      layer.forward(x, y, ws, executor);  // warms the workspace up
      const moe::MoeLayer other(router_of(shape, (l + 1) % arena.num_layers()),
                                experts_of(arena, (l + 1) % arena.num_layers()));
      warm.push_back(seconds_of([&] { other.forward(x, y, ws, executor); }));
    }
    const double later = median(warm);
    std::printf("  %5d tokens: %.2f ms against %.2f ms: %.2f, without %.0f faults %.2f\n", int(tokens), 1e3 * cold,
                1e3 * later, cold / later, faults, (cold - faults * a_fault) / later);
  }
}
#else
template <class W>
void measure_cold(Index) {}
#endif

}  // namespace

int main(int argc, char** argv) try {
  CLI::App app("Does the speed hold: with skewed routing, with more experts, and on the first call?");
  std::string weights = "f32";
  int threads = static_cast<int>(moe::OpenMp().workers());
  double budget = 2;
  app.add_option("--weights", weights, "Type of weights: f32, bf16, f16")->capture_default_str();
  app.add_option("--threads", threads, "Default: one a core")->check(thread_count());
  app.add_option("--seconds", budget, "To spend on each comparison")->capture_default_str()->check(above_zero());
  CLI11_PARSE(app, argc, argv);
  const Limits limits = measure_limits(threads);
  std::printf("%s weights, %d threads; limits: %.0f GFLOP/s, %.1f GB/s\n", weights.c_str(), threads, limits.fma_gflops,
              limits.read_gbs);
  with_float_type(parse_weight_types(weights, float_types).front(), [&]<class W>(std::type_identity<W>) {
    measure_cold<W>(threads);
    measure_num_experts<W>(threads, budget);
    measure_skew<W>(limits, threads, budget);
  });
} catch (const std::exception& error) {
  std::fprintf(stderr, "bench_steadiness: %s\n", error.what());
  return 1;
}
