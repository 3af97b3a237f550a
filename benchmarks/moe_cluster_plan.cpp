/// @file  How would a layer run on a cluster that is not here? Time, bytes and imbalance for any number of ranks, and
///        where experts should be copied. Needs no MPI.
#include <algorithm>
#include <cstdio>
#include <exception>
#include <optional>
#include <string>
#include <thread>
#include <type_traits>
#include <vector>

#include <CLI/CLI.hpp>

#include "calibration.hpp"
#include "choices.hpp"
#include "cluster_model.hpp"
#include "cluster_plan.hpp"
#include "machine.hpp"
#include "memory.hpp"
#include "moe/io/ordered_json.hpp"
#include "moe/io/routing.hpp"
#include "moe/models/presets.hpp"
#include "moe/runtime/executors/openmp.hpp"
#include "options.hpp"
#include "parse.hpp"
#include "progress.hpp"
#include "records_file.hpp"
#include "text.hpp"
#include "weight_pool.hpp"

namespace {

using namespace moe::bench;
using moe::Index;

constexpr Index most_ranks = 4096;

struct Options {
  std::string preset = "olmoe-1b-7b", shape, weights = "f32", ranks = "1,2,4,8,16,32,64,128,256,512,1024,2048,4096",
              trace, wire = "f32", answers = "each", json;
  Index tokens = 256, threads = default_threads();
  double zipf = 1, latency = 2, message = 0.5, bandwidth = 12.5, gflops = 0, gbs = 0;
};

/// @return as parse()
std::optional<int> read_options(int argc, char** argv, Options& o) {
  CLI::App app{
      "How would a layer run on a cluster that is not here? Time, bytes and imbalance for any number of ranks,\n"
      "and where experts should be copied."};
  const auto add = [&](const char* name, auto& value, const char* what) {
    return app.add_option(name, value, what)->capture_default_str();
  };
  auto* preset = add("--preset", o.preset, "A published shape");
  add("--shape", o.shape, "Any other: d_model,d_ff,experts,top_k")->excludes(preset);
  add("--weights", o.weights, "Type of weights: f32, bf16 or f16");
  add("--ranks", o.ranks, "Numbers of ranks, up to 4096");
  add("--tokens", o.tokens, "Tokens of each rank in a call");
  auto* zipf = add("--zipf", o.zipf, "Load by Zipf's law with this exponent; 0: all experts alike");
  add("--trace", o.trace, "Load as recorded: a file of moe::io::save_routing()")->excludes(zipf);
  add("--latency", o.latency, "Microseconds from sending a small message until it is there");
  add("--message", o.message, "Microseconds that a rank is busy with one message");
  add("--bandwidth", o.bandwidth, "GB/s into a rank, and out of it at the same time");
  add("--wire", o.wire, "Type of numbers that travel: f32 or bf16")->check(CLI::IsMember({"f32", "bf16"}));
  add("--answers", o.answers, "One a route, or one a column: each or summed")->check(CLI::IsMember({"each", "summed"}));
  add("--threads", o.threads, "Of a rank, which is taken to be this machine")->check(thread_count());
  auto* gflops = add("--gflops", o.gflops, "Another machine's rank: float operations, 1e9 a second");
  auto* gbs = add("--gbs", o.gbs, "Another machine's rank: GB/s from memory")->needs(gflops);
  gflops->needs(gbs);
  add("--json", o.json, "Write a record for each row to this file");
  return parse(app, argc, argv);
}

void require_positive(double number, const std::string& what, bool zero_is_fine = false) {
  moe::require(zero_is_fine ? number >= 0 : number > 0,
               what + " is " + text("%g", number) + ", expected " + (zero_is_fine ? "0 or more" : "more than 0"));
}

std::vector<Index> ranks_of(const Options& o) {
  const auto counts = parse_numbers(o.ranks, "--ranks");
  for (const Index count : counts) moe::require_between(1, count, most_ranks, "--ranks");
  return counts;
}

Choices load_choices(const Options& o, const moe::MoeShape& shape) {
  if (o.trace.empty()) return draw_zipf(shape.num_experts, shape.top_k, o.zipf, most_looked_at);
  const auto recorded = moe::io::load_routing<float>(o.trace);
  return choices_of(recorded.routing, recorded.num_tokens, shape.num_experts, "--trace " + o.trace);
}

template <class W>
RankSpeed measure_speed(const moe::MoeShape& shape, const Options& o) {
  const Index experts = experts_beyond_cache(shape.d_model, shape.d_ff, sizeof(W));
  const double weights = double(experts * moe::count_gated_ffn_params(shape.d_model, shape.d_ff)) * sizeof(W);
  require_memory(weights + 1e9, "measuring experts of this shape");
  Progress progress;
  progress.show(0, "how fast this machine is");
  const moe::OpenMp executor(o.threads);
  const auto pool = make_weight_pool<W>(shape.d_model, experts * shape.d_ff, executor, [](double) {});
  const double moving = measure_moving(shape.d_model, o.tokens * shape.top_k, executor, 0.2);
  progress.show(0.1, "how fast this machine is");
  return {measure_experts(pool, shape.d_ff, 2048, executor, 0.03), moving};
}

RankSpeed speed_of(const moe::MoeShape& shape, WeightType type, const Options& o) {
  if (o.gflops == 0) {
    const auto speed =
        with_float_type(type, [&]<class W>(std::type_identity<W>) { return measure_speed<W>(shape, o); });
    std::printf("a rank is this machine: %s, %td thread%s, %s\n", processor_name().c_str(), o.threads,
                o.threads == 1 ? "" : "s", compiler_name().c_str());
    return speed;
  }
  require_positive(o.gflops, "--gflops");
  require_positive(o.gbs, "--gbs");
  std::printf("a rank has %g GFLOP/s and %g GB/s of memory\n", o.gflops, o.gbs);
  const auto weights = double(moe::count_gated_ffn_params(shape.d_model, shape.d_ff));
  return {ExpertTime::from_limits(weights * bytes_of(type), 2 * weights, 1e9 * o.gbs, 1e9 * o.gflops), 1e9 * o.gbs};
}

/// Weights on the rank that holds the most.
double weight_bytes(const Plan& plan, const moe::MoeShape& shape, WeightType type) {
  return double(plan.experts * moe::count_gated_ffn_params(shape.d_model, shape.d_ff)) * bytes_of(type);
}

std::string table_head() {
  return "  ranks  experts placed           time   experts    moving  exchange  bytes sent  imbalance  experts   "
         "weights\n"
         "                                                                      by a rank             at most   at "
         "most\n";
}

std::string table_line(const Plan& plan, const moe::MoeShape& shape, WeightType type, bool first) {
  const std::string placed =
      plan.spare == 0 ? plan.placed : text("with %td cop%s", plan.spare, plan.spare == 1 ? "y" : "ies");
  return text("%7s  %-17s %10s%10s%10s%10s %11s %10s %8td %9s\n", first ? std::to_string(plan.num_ranks).c_str() : "",
              placed.c_str(), seconds_text(plan.time.total()).c_str(), seconds_text(plan.time.experts).c_str(),
              seconds_text(plan.time.moving).c_str(), seconds_text(plan.time.exchange).c_str(),
              bytes_text(plan.bytes).c_str(), three_digits(plan.imbalance).c_str(), plan.experts,
              bytes_text(weight_bytes(plan, shape, type)).c_str());
}

/// "12 on 0 3 5; 40 on 1 2" of few ranks, "12 on 57; 40 on 33; …" of many: the experts with the most copies.
std::string copies_text(const Plan& plan) {
  constexpr std::size_t most_named = 8;
  const auto& ranks_of = plan.placement.ranks_of;
  std::vector<std::size_t> copied;
  for (std::size_t e = 0; e < ranks_of.size(); ++e) {
    if (ranks_of[e].size() > 1) copied.push_back(e);
  }
  std::ranges::stable_sort(copied, std::ranges::greater{}, [&](std::size_t e) { return ranks_of[e].size(); });
  std::string words;
  for (std::size_t i = 0; i < std::min(most_named, copied.size()); ++i) {
    words += (i == 0 ? "expert " : "; ") + std::to_string(copied[i]) + " on";
    if (plan.num_ranks > 16) words += text(" %td ranks", std::ssize(ranks_of[copied[i]]));
    for (const int rank : ranks_of[copied[i]]) words += plan.num_ranks > 16 ? "" : text(" %d", rank);
  }
  if (copied.size() > most_named) words += text("; and %td more", std::ssize(copied) - Index(most_named));
  return words;
}

moe::io::OrderedJson record_of(const Plan& plan, const moe::MoeShape& shape, WeightType type, const Options& o) {
  moe::io::OrderedJson record{{"kind", "plan"},
                              {"shape", o.shape.empty() ? o.preset : o.shape},
                              {"weights", name_of(type)},
                              {"load", o.trace.empty() ? text("Zipf %g", o.zipf) : o.trace},
                              {"tokens", o.tokens},
                              {"ranks", plan.num_ranks},
                              {"placed", plan.placed},
                              {"copies", plan.spare},
                              {"ms", 1e3 * plan.time.total()},
                              {"experts_ms", 1e3 * plan.time.experts},
                              {"moving_ms", 1e3 * plan.time.moving},
                              {"exchange_ms", 1e3 * plan.time.exchange},
                              {"bytes", plan.bytes},
                              {"imbalance", plan.imbalance},
                              {"weight_bytes", weight_bytes(plan, shape, type)},
                              {"latency_us", o.latency},
                              {"message_us", o.message},
                              {"bandwidth_gbs", o.bandwidth}};
  if (plan.spare > 0) record["ranks_of"] = plan.placement.ranks_of;
  return record;
}

int run(const Options& o) {
  RecordsFile file(o.json);
  const moe::MoeShape shape = o.shape.empty() ? moe::layer_shape(o.preset) : parse_shape(o.shape);
  const auto types = parse_weight_types(o.weights, float_types);
  moe::require_equal(std::ssize(types), 1, "--weights: the count of types");
  const auto counts = ranks_of(o);
  moe::require_between(1, o.tokens, Index(1) << 20, "--tokens");
  require_positive(o.latency, "--latency", true);
  require_positive(o.message, "--message", true);
  require_positive(o.bandwidth, "--bandwidth");
  const Choices choices = load_choices(o, shape);

  std::printf("%s, %s weights: d_model %td, d_ff %td, %td experts, top %td; %td tokens a rank, %s\n",
              (o.shape.empty() ? o.preset : o.shape).c_str(), name_of(types[0]), shape.d_model, shape.d_ff,
              shape.num_experts, shape.top_k, o.tokens,
              o.trace.empty() ? text("Zipf %g", o.zipf).c_str() : ("as in " + o.trace).c_str());
  const Model model{.speed = speed_of(shape, types[0], o),
                    .link = {1e-6 * o.latency, 1e-6 * o.message, 1e9 * o.bandwidth},
                    .wire = {double(shape.d_model) * (o.wire == "f32" ? 4 : 2), o.answers == "summed"},
                    .column_in_memory = double(shape.d_model) * sizeof(float)};
  std::printf("a link has a latency of %g us, %g us a message, %g GB/s\n\n%s", o.latency, o.message, o.bandwidth,
              table_head().c_str());

  const Planner planner(model, choices, shape.num_experts, o.tokens);
  std::string copies;
  for (const Index count : counts) {
    const auto plans = planner.plans(int(count));
    for (const Plan& plan : plans) {
      std::printf("%s", table_line(plan, shape, types[0], &plan == plans.data()).c_str());
      file.add(record_of(plan, shape, types[0], o));
    }
    std::fflush(stdout);
    if (count == 1) continue;
    copies += text("%7td  ", count) + (plans.back().spare > 0 ? copies_text(plans.back()) : "copies do not pay") + "\n";
  }
  if (!copies.empty()) std::printf("\n  ranks  copies that pay\n%s", copies.c_str());
  const std::string legend =
      "experts, moving, exchange: the busiest rank's work in its experts, its copying and adding of columns, and the "
      "time on the link. bytes sent: the mean of the ranks. imbalance: tokens that the busiest rank's experts have, in "
      "even shares. "
      "with copies: the fewest of those tried that come within 2 % of the best; all places are in --json. Routing and "
      "a "
      "shared expert, which need no other rank, are left out.";
  std::printf("\n%s\n", wrapped(legend).c_str());
  return 0;
}

}  // namespace

int main(int argc, char** argv) try {
  Options options;
  if (const auto exit_code = read_options(argc, argv, options)) return *exit_code;
  return run(options);
} catch (const std::exception& error) {
  std::fprintf(stderr, "moe_cluster_plan: %s\n", error.what());
  return 1;
}
