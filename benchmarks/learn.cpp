/// @file  Does sparse pay in what it learns? Byte-level language models on real text: dense FFNs against sparse ones of
///        equal active size, with the same data in the same order.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <exception>
#include <fstream>
#include <functional>
#include <string>
#include <vector>

#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include "context_model.hpp"
#include "corpus.hpp"
#include "moe/moe.hpp"
#include "moe/train.hpp"
#include "progress.hpp"
#include "timing.hpp"

namespace {

using namespace moe::bench;
using moe::Index;

struct Options {
  std::string text, json;
  Index steps = 1000, batch = 1024, seeds = 3, threads = moe::OpenMp().workers(), active = 256, blocks = 2;
  double learning_rate = 2e-3, balance = 0.01;
  ContextModelShape shape;
};

/// A model to compare: each block has so many experts of which so many are active, or is dense with so many times the
/// active width.
struct Kind {
  std::string name;
  Index experts = 1, top_k = 1, width = 1;  // width of a dense FFN, in active widths
  double balance = 0;
  Index as_long_as = -1;  // takes the time of this one of the models, instead of the number of steps

  bool is_dense() const { return experts == 1; }
};

struct Point {
  Index step;
  double seconds, bits;
};

struct Run {
  std::vector<Point> curve;
  double flops_a_step = 0;  // forward and backward
  Index numbers = 0;
  double busiest = 0;  // load of the busiest expert, in even shares, at the end
};

moe::TrainableLayer<float> make_block(const Kind& kind, const Options& o, std::uint64_t seed) {
  const Index d = o.shape.d_model;
  if (kind.is_dense()) {
    return moe::TrainableLayer<float>(moe::DenseLayer(moe::random_bank<float>(1, d, kind.width * o.active, seed)));
  }
  return moe::TrainableLayer<float>(
      moe::MoeLayer(moe::LinearTopK<float>(moe::random_weight<float>(kind.experts, d, seed + 7),
                                           {.top_k = kind.top_k, .renormalize = kind.top_k > 1}),
                    moe::random_bank<float>(kind.experts, d, o.active / kind.top_k, seed)));
}

double flops_a_step(const Kind& kind, const Options& o) {
  const auto d = double(o.shape.d_model);
  const double ffn = 3 * d * double(o.active * kind.width) + (kind.is_dense() ? 0 : d * double(kind.experts));
  const double around = d * double(o.shape.context * o.shape.embedding) + 256 * d;
  return 6 * double(o.batch) * (double(o.blocks) * ffn + around);
}

Run train(const Kind& kind, const Corpus& corpus, const Options& o, std::uint64_t seed,
          const std::function<void(double)>& progress) {
  const moe::OpenMp executor(o.threads);
  std::vector<moe::TrainableLayer<float>> blocks;
  for (Index b = 0; b < o.blocks; ++b) blocks.push_back(make_block(kind, o, 100 * seed + 10 * std::uint64_t(b)));
  ContextModel model(o.shape, std::move(blocks), seed);
  moe::AdamW<float> adam(model.parameters(), {.weight_decay = 0.01});
  const moe::WarmUpCosine rate{.warm_up = o.steps / 20, .steps = o.steps, .lowest = 0.1};
  const Examples held_out = corpus.held_out(8192);

  const auto keep_balance = [&](moe::TrainableLayer<float>& block) {
    if (kind.balance == 0) return;
    const auto& routing = block.workspace().routing;
    const moe::LoadBalancingOptions options;
    const auto shares = moe::measure_shares(routing, o.batch, kind.experts, options);
    moe::add_load_balancing_gradient<float>(routing, options, shares, kind.balance, block.logit_gradient());
  };
  Run run;
  run.flops_a_step = flops_a_step(kind, o);
  run.numbers = moe::count_numbers(model.parameters());
  double seconds = 0;
  const Index look = std::max<Index>(1, o.steps / 20);
  for (Index step = 0; step < o.steps; ++step) {
    const Examples batch = corpus.batch(o.batch, seed, std::uint64_t(step));
    seconds += seconds_of([&] {
      model.learn(batch, executor, keep_balance);
      moe::clip_gradients(model.gradients(), 1.0, executor);
      adam.options().learning_rate = o.learning_rate * rate(step);
      adam.step(model.gradients(), executor);
    });
    if ((step + 1) % look == 0) run.curve.push_back({step + 1, seconds, model.bits(held_out, executor)});
    progress(double(step + 1) / double(o.steps));
  }
  for (auto& block : model.blocks()) {
    if (kind.is_dense()) break;
    std::vector<double> load(std::size_t(kind.experts), 0);
    for (const Index e : block.workspace().routing.expert) load[std::size_t(e)] += 1;
    const double even = double(block.workspace().routing.size()) / double(kind.experts);
    run.busiest = std::max(run.busiest, *std::max_element(load.begin(), load.end()) / even);
  }
  return run;
}

void print(const Kind& kind, const Run& run, const Run& dense, std::uint64_t seed) {
  const double bits = run.curve.back().bits, against = dense.curve.back().bits;
  std::printf("%4d  %-34s %9.2f M %9.3g %8.1f s %8.4f %+7.1f %%", int(seed), kind.name.c_str(),
              1e-6 * double(run.numbers), run.flops_a_step * double(run.curve.back().step), run.curve.back().seconds,
              bits, 100 * (bits / against - 1));
  if (run.busiest > 0) std::printf("   busiest expert %.1f", run.busiest);
  std::printf("\n");
  std::fflush(stdout);
}

void read_options(CLI::App& app, Options& o) {
  app.option_defaults()->always_capture_default();
  app.add_option("--text", o.text, "A file to learn from; else the headers of Eigen");
  app.add_option("--steps", o.steps, "Steps of each model")->check(CLI::PositiveNumber);
  app.add_option("--batch", o.batch, "Examples in a step")->check(CLI::PositiveNumber);
  app.add_option("--seeds", o.seeds, "Runs of each model")->check(CLI::PositiveNumber);
  app.add_option("--threads", o.threads, "Default: one a core")->check(CLI::PositiveNumber);
  app.add_option("--d-model", o.shape.d_model)->check(CLI::PositiveNumber);
  app.add_option("--active", o.active, "Hidden units that a token meets in a block")->check(CLI::PositiveNumber);
  app.add_option("--balance", o.balance, "Coefficient of the load balancing loss")->check(CLI::NonNegativeNumber);
  app.add_option("--learning-rate", o.learning_rate)->check(CLI::PositiveNumber);
  app.add_option("--json", o.json, "Write the curves to this file");
}

}  // namespace

int main(int argc, char** argv) try {
  Options o;
  CLI::App app(
      "Does sparse pay in what it learns? Trains byte-level language models, dense and sparse, on the same data.");
  read_options(app, o);
  CLI11_PARSE(app, argc, argv);
  Eigen::setNbThreads(int(o.threads));

  const Corpus corpus(o.text.empty() ? read_headers(EIGEN_FOLDER) : read_text(o.text), o.shape.context);
  const std::vector<Kind> kinds{{"dense, equal active size"},
                                {"8 experts, top 2", 8, 2, 1, o.balance},
                                {"16 experts, top 1", 16, 1, 1, o.balance},
                                {"8 experts, top 2, no balance loss", 8, 2},
                                {"dense, 4 times as large", 1, 1, 4},
                                {"dense, the time of 8 top 2", 1, 1, 1, 0, 1},
                                {"dense, the time of 16 top 1", 1, 1, 1, 0, 2}};
  std::printf("%s, %.2f MB, every tenth chunk held out; %d steps of %d bytes, %d threads\n",
              o.text.empty() ? "Headers of Eigen" : o.text.c_str(), 1e-6 * double(corpus.size()), int(o.steps),
              int(o.batch), int(o.threads));
  std::printf("%4s  %-34s %11s %9s %10s %8s %9s\n", "seed", "FFNs", "parameters", "FLOPs", "time", "bits/byte",
              "to dense");
  nlohmann::json records = nlohmann::json::array();
  Progress progress;
  double done = 0;
  for (std::uint64_t seed = 1; seed <= std::uint64_t(o.seeds); ++seed) {
    std::vector<Run> runs;
    for (const Kind& kind : kinds) {
      Options its = o;
      if (kind.as_long_as >= 0) {  // more steps, on a schedule of their own, as many as take as long
        const auto seconds = [&](std::size_t of) { return runs[of].curve.back().seconds; };
        its.steps = std::lround(double(o.steps) * seconds(std::size_t(kind.as_long_as)) / seconds(0));
      }
      runs.push_back(train(kind, corpus, its, seed, [&](double share) {
        progress.show((done + share) / double(kinds.size() * std::size_t(o.seeds)), kind.name);
      }));
      done += 1;
      progress.clear();
      print(kind, runs.back(), runs.front(), seed);
      nlohmann::json curve = nlohmann::json::array();
      for (const auto& [step, seconds, bits] : runs.back().curve) {
        curve.push_back({{"step", step},
                         {"flops", double(step) * runs.back().flops_a_step},
                         {"seconds", seconds},
                         {"held_out_bits_per_byte", bits}});
      }
      records.push_back({{"ffns", kind.name}, {"seed", seed}, {"parameters", runs.back().numbers}, {"curve", curve}});
    }
  }
  if (!o.json.empty()) {
    std::ofstream file(o.json);
    file << records.dump(1) << '\n';
    if (!file) throw std::runtime_error(o.json + ": cannot be written");
  }
  return EXIT_SUCCESS;
} catch (const std::exception& error) {
  std::fprintf(stderr, "learn: %s\n", error.what());
  return EXIT_FAILURE;
}
