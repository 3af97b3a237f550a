/// @file  Is the model of a cluster true? Times a layer's experts on ranks of one thread, and says what the model says.
///
///   mpirun -n 4 --map-by core --bind-to core:overload-allowed cluster_model_on_ranks
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <exception>
#include <memory>
#include <numeric>
#include <optional>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include "calibration.hpp"
#include "choices.hpp"
#include "cluster_model.hpp"
#include "link.hpp"
#include "machine.hpp"
#include "memory.hpp"
#include "moe/distributed/expert_parallel.hpp"
#include "moe/distributed/run.hpp"
#include "moe/models/presets.hpp"
#include "moe/runtime/executors/serial.hpp"
#include "options.hpp"
#include "parse.hpp"
#include "records_file.hpp"
#include "text.hpp"
#include "weight_pool.hpp"

namespace {

using namespace moe::bench;
using moe::Index;
namespace distributed = moe::distributed;

struct Options {
  std::string preset = "olmoe-1b-7b", shape, tokens = "64,256,1024", link = "shared memory", json;
  std::vector<double> zipf{0, 1};
  Index cores = std::max(1U, std::thread::hardware_concurrency());
  double budget = 0.1;
};

/// @return as parse()
std::optional<int> read_options(int argc, char** argv, Options& o) {
  CLI::App app{
      "Is the model of a cluster true? Times a layer's experts on the ranks of mpirun, one thread each, and puts\n"
      "what the model says beside it."};
  const auto add = [&](const char* name, auto& value, const char* what) {
    return app.add_option(name, value, what)->capture_default_str();
  };
  auto* preset = add("--preset", o.preset, "A published shape");
  add("--shape", o.shape, "Any other: d_model,d_ff,experts,top_k")->excludes(preset);
  add("--tokens", o.tokens, "Numbers of tokens of each rank in a call");
  add("--zipf", o.zipf, "Loads by Zipf's law with these exponents; 0: all experts alike")->delimiter(',');
  add("--cores", o.cores, "That the ranks are bound to in turns")->check(CLI::PositiveNumber);
  add("--seconds", o.budget, "To spend on each number of tokens, when measuring what one expert takes");
  add("--link", o.link, "What lies between the ranks, for the records");
  add("--json", o.json, "Write a record for each row to this file");
  return parse(app, argc, argv);
}

/// Collective. As many ranks as there are cores measure at once, as later they work at once; the others sleep.
RankSpeed measure_speed(const Ranks& ranks, const std::shared_ptr<const WeightPool<float>>& pool,
                        const moe::MoeShape& shape, Index most_routes, const Options& o) {
  std::optional<RankSpeed> speed;
  if (ranks.rank() < o.cores) {
    const double moving = measure_moving(shape.d_model, most_routes, moe::Serial{}, 2 * o.budget);
    speed = {measure_experts(pool, shape.d_ff, 2048, moe::Serial{}, o.budget), moving};
  }
  ranks.meet();
  return speed.value_or(RankSpeed{ExpertTime({{1, 0}}), 1});  // only rank 0 will be asked
}

moe::Routing<float> routing_of(const Choices& choices, Index first, Index count) {
  moe::Routing<float> routing;
  for (Index t = 0; t < count; ++t) {
    for (const int e : choices.of(first + t)) routing.add(t, e, 1.0F);
  }
  return routing;
}

/// Means over calls, in each of which the ranks have other tokens.
struct Cost {
  double seconds = 0;  // of the slowest rank
  double bytes = 0;    // that all ranks sent to others
};

/// Calls of ExpertParallel on the tokens of `choices`, again and again.
class Calls {
 public:
  Calls(const Ranks& ranks, std::optional<moe::GatedFfnBank<float>> own, distributed::Placement placement)
      : ranks_(ranks), experts_(std::move(own), std::move(placement), MPI_COMM_WORLD, {.traffic = &traffic_}) {}

  /// Collective. Each call is made four times, in four rounds: in the first, memory grows; of the others' times the
  /// least counts, as what disturbs, disturbs for a while.
  Cost measure(const Choices& choices, Index tokens, Index calls) {
    const auto x = random_tokens(experts_.d_model(), tokens);
    moe::Matrix<float> y = moe::Matrix<float>::Zero(experts_.d_model(), tokens);
    std::vector<Cost> costs(std::size_t(calls), Cost{});
    for (Index call = 0; call < 4 * calls; ++call) {
      moe::PlanMemory<float> memory;
      const Index first = (call % calls * ranks_.size() + ranks_.rank()) * tokens;
      const auto plan = plan_dispatch(routing_of(choices, first, tokens), tokens, experts_.num_experts(), memory);
      moe::Workers workers(moe::Serial{}, scratch_);
      traffic_ = {};
      const double seconds = seconds_on_all(ranks_, [&] { experts_.apply(x, plan, y, workers); });
      Cost& cost = costs[std::size_t(call % calls)];
      cost.seconds = call < 2 * calls ? seconds : std::min(cost.seconds, seconds);
      const auto bytes = ranks_.of_all(traffic_.bytes);
      cost.bytes = double(std::accumulate(bytes.begin(), bytes.end(), Index(0)));
    }
    Cost mean;
    for (const Cost& cost : costs) {
      mean.seconds += cost.seconds / double(calls);
      mean.bytes += cost.bytes / double(calls);
    }
    return mean;
  }

 private:
  const Ranks& ranks_;
  distributed::Traffic traffic_;
  distributed::ExpertParallel<moe::GatedFfnBank<float>> experts_;
  std::vector<moe::Scratch> scratch_;
};

/// Of the same calls.
std::pair<CallTime, double> predict(const Model& model, const Choices& choices, const distributed::Placement& placement,
                                    int num_ranks, Index tokens, Index calls) {
  CallTime time;
  double bytes = 0;
  for (Index call = 0; call < calls; ++call) {
    const auto work = divide_work(choices, call * num_ranks * tokens, placement, num_ranks, tokens, num_ranks * tokens);
    time = time + 1.0 / double(calls) * model(work);
    for (const RankWork& rank : work) bytes += model.wire.bytes_sent(rank, num_ranks) / double(calls);
  }
  return {time, bytes};
}

int run(const Options& o) {
  const Ranks ranks;
  const bool tells = ranks.rank() == 0;
  RecordsFile file(tells ? o.json : "");
  const moe::MoeShape shape = o.shape.empty() ? moe::layer_shape(o.preset) : parse_shape(o.shape);
  const auto token_counts = parse_numbers(o.tokens, "--tokens");
  const Index most_routes = *std::ranges::max_element(token_counts) * shape.top_k;
  const double column = double(shape.d_model) * sizeof(float);
  const auto placement = distributed::place_in_blocks(shape.num_experts, ranks.size());
  const Index held = std::ssize(placement.experts_of(ranks.rank())), experts = std::max<Index>(held, 1);
  const double weights = double(moe::count_gated_ffn_params(shape.d_model, shape.d_ff)) * sizeof(float);
  require_memory(ranks.size() * (double(experts) * weights + 8 * double(most_routes) * column), "all ranks");
  const auto pool = make_weight_pool<float>(shape.d_model, experts * shape.d_ff, moe::Serial{}, [](double) {});
  const RankSpeed speed = measure_speed(ranks, pool, shape, most_routes, o);
  Calls all_calls(ranks, held > 0 ? std::optional(experts_in(pool, 0, shape.d_ff, held)) : std::nullopt, placement);

  if (tells) {
    std::printf(
        "%s, f32 weights: %d rank%s on %td core%s of %s, linked by %s\n\n%s",
        (o.shape.empty() ? o.preset : o.shape).c_str(), ranks.size(), ranks.size() == 1 ? "" : "s", o.cores,
        o.cores == 1 ? "" : "s", processor_name().c_str(), o.link.c_str(),
        " tokens  load     measured  predicted         = experts    moving  exchange   bytes sent by all   latency "
        "a message  bandwidth\n");
  }
  for (const double zipf : o.zipf) {
    for (const Index tokens : token_counts) {
      const Index calls = std::max<Index>(3, 512 / tokens);
      const Choices choices = draw_zipf(shape.num_experts, shape.top_k, zipf, ranks.size() * tokens * calls);
      const Link link = measure_link(ranks, Index(column), tokens * shape.top_k / ranks.size());
      const Cost cost = all_calls.measure(choices, tokens, calls);
      if (!tells) continue;
      const Model model{speed, link, {.column = column}, column, int(o.cores)};
      const auto [time, bytes] = predict(model, choices, placement, ranks.size(), tokens, calls);
      const std::string sent = std::abs(cost.bytes - bytes) < 0.5
                                   ? bytes_text(bytes) + ", as predicted"
                                   : bytes_text(cost.bytes) + " not " + bytes_text(bytes);
      std::printf("%7td  Zipf %-3g %9s %10s (%+3.0f %%) %9s %9s %9s %19s %9s %9s %8s/s\n", tokens, zipf,
                  seconds_text(cost.seconds).c_str(), seconds_text(time.total()).c_str(),
                  100 * (time.total() / cost.seconds - 1), seconds_text(time.experts).c_str(),
                  seconds_text(time.moving).c_str(), seconds_text(time.exchange).c_str(), sent.c_str(),
                  seconds_text(link.latency).c_str(), seconds_text(link.message).c_str(),
                  bytes_text(link.bytes_a_second).c_str());
      std::fflush(stdout);
      file.add({{"kind", "measured"},
                {"shape", o.shape.empty() ? o.preset : o.shape},
                {"link", o.link},
                {"ranks", ranks.size()},
                {"cores", o.cores},
                {"zipf", zipf},
                {"tokens", tokens},
                {"ms", 1e3 * cost.seconds},
                {"predicted_ms", 1e3 * time.total()},
                {"experts_ms", 1e3 * time.experts},
                {"moving_ms", 1e3 * time.moving},
                {"exchange_ms", 1e3 * time.exchange},
                {"bytes", cost.bytes},
                {"predicted_bytes", bytes},
                {"latency_us", 1e6 * link.latency},
                {"message_us", 1e6 * link.message},
                {"bandwidth_gbs", 1e-9 * link.bytes_a_second}});
    }
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  Options options;
  if (const auto exit_code = read_options(argc, argv, options)) return *exit_code;
  return distributed::run(argc, argv, [&] { return run(options); });
}
