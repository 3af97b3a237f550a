/// @file  Does sparse pay in what it learns? Byte-level language models on real text: dense FFNs against sparse ones of
///        equal active size, with the same data in the same order.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <fstream>
#include <string>
#include <utility>
#include <vector>

#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include "context_model.hpp"
#include "corpus.hpp"
#include "moe/moe.hpp"
#include "moe/train.hpp"
#include "parse.hpp"
#include "progress.hpp"
#include "records_file.hpp"
#include "timing.hpp"

namespace {

using namespace moe::bench;
using moe::Index;

struct Options {
  std::string text, json;
  Index steps = 1500, batch = 1024, seeds = 3, threads = moe::OpenMp().workers(), active = 256, blocks = 2;
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
  double bits;
};

/// What a model has learnt, and what that took.
struct Run {
  Kind kind;
  std::uint64_t seed = 0;
  std::vector<Point> curve;
  double flops_a_step = 0;    // forward and backward
  double seconds_a_step = 0;  // the median
  Index numbers = 0;
  std::vector<std::vector<double>> loads;  // of each block: routes to each expert in the end, in even shares

  double bits() const { return curve.back().bits; }
  Index steps() const { return curve.back().step; }
  double seconds() const { return double(steps()) * seconds_a_step; }
  double busiest() const {
    double most = 0;
    for (const auto& of_block : loads) most = std::max(most, *std::max_element(of_block.begin(), of_block.end()));
    return most;
  }
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

ContextModel make_model(const Kind& kind, const Options& o, std::uint64_t seed) {
  std::vector<moe::TrainableLayer<float>> blocks;
  for (Index b = 0; b < o.blocks; ++b) {
    blocks.push_back(make_block(kind, o, 100 * seed + 10 * std::uint64_t(b)));
    for (const auto& matrix : blocks.back().parameters()) matrix.array() /= std::sqrt(3.0f);  // as ContextModel's
  }
  return {o.shape, std::move(blocks), seed};
}

double flops_a_step(const Kind& kind, const Options& o) {
  const auto d = double(o.shape.d_model);
  const double ffn = 3 * d * double(o.active * kind.width) + (kind.is_dense() ? 0 : d * double(kind.experts));
  const double around = d * double(o.shape.context * o.shape.embedding) + 256 * d;
  return 6 * double(o.batch) * (double(o.blocks) * ffn + around);
}

/// A model on its way through its steps.
class Learner {
 public:
  Learner(Kind kind, Index steps, const Corpus& corpus, const Options& o, std::uint64_t seed)
      : run_{.kind = std::move(kind), .seed = seed, .curve = {}, .loads = {}},
        steps_(steps),
        corpus_(corpus),
        o_(o),
        executor_(o.threads),
        model_(make_model(run_.kind, o, seed)),
        adam_(model_.parameters(), {.weight_decay = 0.01}) {
    run_.flops_a_step = flops_a_step(run_.kind, o);
    run_.numbers = moe::count_numbers(model_.parameters());
  }

  /// One of `rounds` equal parts of the way. Others have their turn in between, so that what disturbs the clock
  /// disturbs all alike.
  void learn(Index round, Index rounds, const Examples& held_out) {
    const moe::WarmUpCosine rate{.warm_up = steps_ / 20, .steps = steps_, .lowest = 0.1};
    const Index last = steps_ * (round + 1) / rounds;
    if (last == step_) return;
    for (; step_ < last; ++step_) {
      const Examples batch = corpus_.batch(o_.batch, run_.seed, std::uint64_t(step_));
      seconds_.push_back(seconds_of([&] {
        model_.learn(batch, executor_, [&](auto& block) { keep_balance(block); });
        moe::clip_gradients(model_.gradients(), 1.0, executor_);
        adam_.options().learning_rate = o_.learning_rate * rate(step_);
        adam_.step(model_.gradients(), executor_);
      }));
    }
    run_.curve.push_back({step_, model_.bits(held_out, executor_)});
    run_.seconds_a_step = median(seconds_);
    measure_loads();
  }

  const Run& run() const { return run_; }

 private:
  void keep_balance(moe::TrainableLayer<float>& block) const {
    if (run_.kind.balance == 0) return;
    const auto& routing = block.workspace().routing;
    const moe::LoadBalancingOptions options;
    const auto shares = moe::measure_shares(routing, o_.batch, run_.kind.experts, options);
    moe::add_load_balancing_gradient<float>(routing, options, shares, run_.kind.balance, block.logit_gradient());
  }

  /// Of the held-out text, which went through the model last.
  void measure_loads() {
    if (run_.kind.is_dense()) return;
    run_.loads.clear();
    for (auto& block : model_.blocks()) {
      const auto& routing = block.workspace().routing;
      auto& load = run_.loads.emplace_back(std::size_t(run_.kind.experts), 0.0);
      for (const Index e : routing.expert) load[std::size_t(e)] += double(run_.kind.experts) / double(routing.size());
    }
  }

  Run run_;
  Index steps_, step_ = 0;
  const Corpus& corpus_;
  const Options& o_;
  moe::OpenMp executor_;
  ContextModel model_;
  moe::AdamW<float> adam_;
  std::vector<double> seconds_;  // of each step
};

const char* const head =
    "seed  FFNs                                parameters     FLOPs    a step      time bits/byte  to dense";

void print(const Run& run, const Run& dense) {
  std::printf("%4d  %-34s %9.2f M %9.3g %6.1f ms %7.1f s %9.4f %+7.1f %%", int(run.seed), run.kind.name.c_str(),
              1e-6 * double(run.numbers), run.flops_a_step * double(run.steps()), 1e3 * run.seconds_a_step,
              run.seconds(), run.bits(), 100 * (run.bits() / dense.bits() - 1));
  if (run.busiest() > 0) std::printf("   busiest expert %.1f", run.busiest());
  std::printf("\n");
  std::fflush(stdout);
}

/// By how much a model is ahead of another one, in each seed: the mean, and the seed in which it is least so.
void print_verdict(const std::vector<std::vector<Run>>& seeds, std::size_t which, std::size_t against) {
  double sum = 0, worst = -1;
  for (const auto& runs : seeds) {
    const double off = runs[which].bits() / runs[against].bits() - 1;
    sum += off;
    worst = std::max(worst, off);
  }
  const auto& runs = seeds.front();
  std::printf("%-34s %+5.1f %% bits per byte, %+5.1f %% in its worst seed, to %s\n", runs[which].kind.name.c_str(),
              100 * sum / double(seeds.size()), 100 * worst, runs[against].kind.name.c_str());
}

nlohmann::ordered_json record_of(const Run& run) {
  auto curve = nlohmann::ordered_json::array();
  for (const auto& [step, bits] : run.curve) {
    curve.push_back({{"step", step},
                     {"flops", double(step) * run.flops_a_step},
                     {"seconds", double(step) * run.seconds_a_step},
                     {"held_out_bits_per_byte", bits}});
  }
  return {{"ffns", run.kind.name},       {"seed", run.seed},   {"parameters", run.numbers},
          {"balance", run.kind.balance}, {"loads", run.loads}, {"curve", curve}};
}

void read_options(CLI::App& app, Options& o) {
  app.option_defaults()->always_capture_default();
  app.add_option("--text", o.text, "A file to learn from; else the headers of Eigen");
  app.add_option("--steps", o.steps, "Steps of each model")->check(at_least_one());
  app.add_option("--batch", o.batch, "Examples in a step")->check(at_least_one());
  app.add_option("--seeds", o.seeds, "Runs of each model")->check(at_least_one());
  app.add_option("--threads", o.threads, "Default: one a core")->check(at_least_one());
  app.add_option("--d-model", o.shape.d_model)->check(at_least_one());
  app.add_option("--active", o.active, "Hidden units that a token meets in a block")->check(at_least_one());
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
  RecordsFile file(o.json);
  Eigen::setNbThreads(int(o.threads));

  const Corpus corpus(o.text.empty() ? read_headers(EIGEN_FOLDER) : read_text(o.text), o.shape.context);
  const Examples held_out = corpus.held_out(8192);
  const std::vector<Kind> kinds{{"dense, equal active size"},
                                {"8 experts, top 2", 8, 2, 1, o.balance},
                                {"16 experts, top 1", 16, 1, 1, o.balance},
                                {"8 experts, top 2, no balance loss", 8, 2},
                                {"dense, 4 times as large", 1, 1, 4},
                                {"dense, the time of 8 top 2", 1, 1, 1, 0, 1},
                                {"dense, the time of 16 top 1", 1, 1, 1, 0, 2}};
  std::printf("%s, %.2f MB, every tenth chunk held out; %d steps of %d bytes, %d threads\n%s\n",
              o.text.empty() ? "Headers of Eigen" : o.text.c_str(), 1e-6 * double(corpus.size()), int(o.steps),
              int(o.batch), int(o.threads), head);
  std::fflush(stdout);
  constexpr Index rounds = 20;
  std::vector<std::vector<Run>> seeds;
  Progress progress;
  double done = 0;
  for (std::uint64_t seed = 1; seed <= std::uint64_t(o.seeds); ++seed) {
    std::vector<Run> runs;
    for (const bool by_time : {false, true}) {  // first those of equal steps, whose time the others take
      std::vector<Learner> learners;
      for (const Kind& kind : kinds) {
        if ((kind.as_long_as >= 0) != by_time) continue;
        Index steps = o.steps;
        if (by_time) {
          const Run& model = runs[std::size_t(kind.as_long_as)];
          steps = std::max(1l, std::lround(double(steps) * model.seconds_a_step / runs[0].seconds_a_step));
        }
        learners.emplace_back(kind, steps, corpus, o, seed);
      }
      for (Index round = 0; round < rounds; ++round) {
        for (Learner& learner : learners) {
          progress.show(done / double(kinds.size() * std::size_t(rounds * o.seeds)), learner.run().kind.name);
          learner.learn(round, rounds, held_out);
          done += 1;
        }
      }
      progress.clear();
      for (const Learner& learner : learners) {
        runs.push_back(learner.run());
        if (by_time)
          runs.back().seconds_a_step = runs[0].seconds_a_step;  // timed in turn with those it is held against
      }
    }
    for (const Run& run : runs) {
      print(run, runs[0]);
      file.add(record_of(run));
    }
    seeds.push_back(std::move(runs));
  }
  std::printf("\n");
  for (const auto& [which, against] : {std::pair<std::size_t, std::size_t>{1, 0}, {2, 0}, {1, 5}, {2, 6}}) {
    print_verdict(seeds, which, against);
  }
  return EXIT_SUCCESS;
} catch (const std::exception& error) {
  std::fprintf(stderr, "learn: %s\n", error.what());
  return EXIT_FAILURE;
}
