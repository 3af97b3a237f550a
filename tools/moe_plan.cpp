// How fast a model whose experts do not fit in memory would run, with how much memory.
#include <moe/core/huge_pages.hpp>
#include <moe/io/model.hpp>
#include <moe/io/ordered_json.hpp>
#include <moe/io/store/expert_bytes.hpp>
#include <moe/io/store/measure_disk.hpp>
#include <moe/io/store/plan.hpp>
#include <moe/io/store/read_trace.hpp>
#include <moe/io/store/stored_file.hpp>
#include <moe/moe.hpp>
#include <moe/telemetry/text.hpp>

#include <algorithm>
#include <array>
#include <charconv>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "../benchmarks/progress.hpp"
#include "replay.hpp"

namespace {

using moe::Index;
using namespace moe::io;

constexpr const char* usage =
    "moe_plan TRACE MODEL\n"
    "moe_plan TRACE --expert-bytes BYTES [--experts N]\n"
    "  With how much memory for experts would a model run how fast? Replays a recorded run (moe::io::TraceRecorder, "
    "or\n"
    "  others: docs/out_of_core.md) under each policy, and under Belady's MIN, which none can pass.\n"
    "  TRACE           lines of token,layer,expert; an array [tokens, layers, k] of numpy.save(); or lines of\n"
    "                  layer,expert,count, of which tokens are drawn\n"
    "  MODEL           a folder, or a .gguf file: its experts' sizes, and the disk\n"
    "  --expert-bytes  of each expert, where no model is at hand: 9.4MB\n"
    "  --experts       of a layer, then; default: as many as the trace names\n"
    "  --memory LIST   budgets: 4GB,8GiB,25%; default: 5%,10%,25%,50%,75%,100% of all experts\n"
    "  --disk RATE     a second: 2.5GB; default: measured, by reading MODEL's largest file past the system's cache\n"
    "  --compute RATE  bytes of experts that are computed a second: 20GB; default: measured, by MODEL's experts, or "
    "by\n"
    "                  reading memory where there is no MODEL\n"
    "  --besides TIME  of a token, not for experts (attention, …): 12ms\n"
    "  --measure       runs MODEL's experts as the trace says, too, within each budget, by decayed counts: what was\n"
    "                  planned beside what came of it\n"
    "  --threads N     that compute; default: one a core\n"
    "  --top-k N, --tokens N  to draw from counts; default: MODEL's, and 512\n"
    "  --json          for programs\n"
    "  --help          this\n"
    "Exit code: 0; 2 for wrong usage, or a file that cannot be read.\n";

int complain(const std::string& what) {
  std::fprintf(stderr, "moe_plan: %s\n", what.c_str());
  return 2;
}

template <class... Parts>
std::string text(const char* format, const Parts&... parts) {
  std::array<char, 400> line;
  std::snprintf(line.data(), line.size(), format, parts...);
  return line.data();
}

/// "9.4MB" as a number of bytes; a unit is needed, but for "B".
/// @throws moe::io::Error naming the option.
double parse_quantity(const std::string& option, std::string_view said,
                      const std::vector<std::pair<std::string_view, double>>& units, const std::string& expected) {
  double number = 0;
  const auto [end, error] = std::from_chars(said.data(), said.data() + said.size(), number);
  std::string_view unit = said.substr(std::size_t(end - said.data()));
  if (unit.ends_with("/s")) unit.remove_suffix(2);
  for (const auto& [name, factor] : units) {
    if (error == std::errc() && unit == name && number > 0 && std::isfinite(number * factor)) return number * factor;
  }
  fail(option, " is \"", said, "\", expected ", expected);
}

double parse_bytes(const std::string& option, std::string_view said, double all = 0) {
  std::vector<std::pair<std::string_view, double>> units{
      {"B", 1},        {"kB", 1e3},        {"MB", 1e6},         {"GB", 1e9},           {"TB", 1e12},
      {"KiB", 1024.0}, {"MiB", 1048576.0}, {"GiB", 1073741824}, {"TiB", 1099511627776}};
  if (all > 0) units.emplace_back("%", all / 100);
  const double bytes = parse_quantity(option, said, units,
                                      all > 0 ? "bytes or a share, as 4GB, 8GiB, 25%" : "bytes, as 9.4MB or 2.5GB/s");
  if (bytes > 1e18) fail(option, " is \"", said, "\", expected at most 1e18 bytes");
  return bytes;
}

struct Options {
  std::string trace, model, memory;
  double expert_bytes = 0, disk = 0, compute = 0, besides = 0;
  Index experts = 0, top_k = 0, tokens = 512, threads = 0;
  bool json = false, measure = false;
};

Index parse_number(const std::string& option, std::string_view said, Index most) {
  Index number = 0;
  const auto [end, error] = std::from_chars(said.data(), said.data() + said.size(), number);
  if (error == std::errc() && end == said.data() + said.size() && number >= 1 && number <= most) return number;
  fail(option, " is \"", said, "\", expected a number from 1 to ", most);
}

/// @return the exit code if all is said
std::optional<int> read_options(int argc, char** argv, Options& o) {
  std::vector<std::string> places;
  bool ended = false;
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    if (ended || !argument.starts_with('-')) {
      places.push_back(argument);
      continue;
    }
    if (argument == "--") {
      ended = true;
      continue;
    }
    if (argument == "--help" || argument == "-h") return std::fputs(usage, stdout) < 0 ? 2 : 0;
    if (argument == "--json") {
      o.json = true;
      continue;
    }
    if (argument == "--measure") {
      o.measure = true;
      continue;
    }
    constexpr auto with_value =
        std::to_array<std::string_view>({"--expert-bytes", "--experts", "--memory", "--disk", "--compute", "--besides",
                                         "--threads", "--top-k", "--tokens"});
    if (std::ranges::find(with_value, argument) == with_value.end()) {
      std::string all;
      for (const std::string_view name : with_value) all += std::string(name) + ", ";
      return complain("no option is called \"" + argument + "\", expected " + all + "--measure, --json or --help");
    }
    if (i + 1 == argc) return complain(argument + " is the last word, expected its value behind it; see --help");
    const std::string said = argv[++i];
    if (argument == "--expert-bytes") o.expert_bytes = parse_bytes(argument, said);
    if (argument == "--disk") o.disk = parse_bytes(argument, said);
    if (argument == "--compute") o.compute = parse_bytes(argument, said);
    if (argument == "--memory") o.memory = said;
    if (argument == "--besides") {
      o.besides = parse_quantity(argument, said, {{"s", 1}, {"ms", 1e-3}, {"us", 1e-6}}, "a time, as 12ms");
    }
    if (argument == "--experts") o.experts = parse_number(argument, said, most_traced_experts);
    if (argument == "--threads") o.threads = parse_number(argument, said, 1024);
    if (argument == "--top-k") o.top_k = parse_number(argument, said, most_traced_experts);
    if (argument == "--tokens") o.tokens = parse_number(argument, said, 1 << 20);
  }
  const std::size_t expected = o.expert_bytes > 0 ? 1 : 2;
  if (places.size() != expected) {
    return complain("got " + std::to_string(places.size()) + " files, expected " +
                    (expected == 1 ? "TRACE alone, beside --expert-bytes" : "TRACE and MODEL") + "; see --help");
  }
  o.trace = places[0];
  if (expected == 2) o.model = places[1];
  if (o.measure && o.model.empty()) return complain("--measure runs a model's experts, expected TRACE and MODEL");
  return std::nullopt;
}

// ---- what is measured

using Clock = std::chrono::steady_clock;
double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

/// Runs task(thread) on some threads at once.
/// @return seconds, until the last is done
template <class F>
double run_threads(std::size_t number, const F& task) {
  std::vector<std::thread> threads;
  const auto start = Clock::now();
  for (std::size_t t = 0; t < number; ++t) threads.emplace_back([&task, t] { task(t); });
  for (std::thread& thread : threads) thread.join();
  return seconds_since(start);
}

/// Bytes a second that all cores read of memory: the best of three.
double measure_memory() {
  const std::size_t threads = std::max(1U, std::thread::hardware_concurrency());
  const std::size_t words = (std::size_t(256) << 20) / sizeof(std::uint64_t) / threads;
  std::vector<std::vector<std::uint64_t, moe::HugePageAllocator<std::uint64_t>>> memory(threads);
  run_threads(threads, [&](std::size_t t) { memory[t].assign(words, t); });
  std::vector<std::uint64_t> sums(threads);
  double best = 0;
  for (int round = 0; round < 3; ++round) {
    const double seconds = run_threads(threads, [&](std::size_t t) {
      std::uint64_t sum = 0;
      for (const std::uint64_t word : memory[t]) sum += word;
      sums[t] = sum;
    });
    best = std::max(best, double(threads * words * sizeof(std::uint64_t)) / seconds);
  }
  if (sums[0] != 0) return 0;  // never: so that the sums are made
  return best;
}

/// Bytes a second that a file gives to reads of pieces.
/// @throws moe::io::Error where it cannot be read past the system's cache.
double disk_of(const std::string& file, std::size_t piece) {
  try {
    return measure_disk(*open_stored_file(file), std::filesystem::file_size(file), {.piece = piece});
  } catch (const std::exception& error) {
    fail(file, ": ", error.what(), ": expected --disk 2.5GB/s");
  }
}

/// Of so many threads, or one a core.
class Executor {
 public:
  explicit Executor([[maybe_unused]] Index threads)
#ifdef _OPENMP
      : its_(threads > 0 ? threads : moe::OpenMp().workers()) {
  }
#else
  {
  }
#endif
  moe::ExecutorRef ref() const { return its_; }

 private:
#ifdef _OPENMP
  moe::OpenMp its_;
#else
  moe::Serial its_;
#endif
};

// ---- what is planned

/// The experts of a model, as a trace meets them.
struct Experts {
  ExpertBytes bytes;  // of each layer: the room that they take
  Index all = 0, number = 0;
  std::string file = {};  // that holds the first
};

Experts experts_of(const Model& model, const Trace& trace, const std::string& traced) {
  if (model.moe_blocks().size() != trace.layer_numbers.size()) {
    fail(traced, ": has ", trace.layer_numbers.size(), " layers, expected ", model.moe_blocks().size(),
         ", the MoE layers of ", utf8(model.folder()));
  }
  Experts experts;
  std::uintmax_t largest = 0;
  model.tensors().for_each_below("", [&](const Tensor& tensor) {
    std::error_code error;
    if (tensor.file.empty() || tensor.file == experts.file) return;
    const std::uintmax_t size = std::filesystem::file_size(tensor.file, error);
    if (!error && size > largest) largest = size, experts.file = tensor.file;
  });
  for (const std::string& block : model.moe_blocks()) {
    std::vector<Index> bytes;
    for (const FileParts& parts : expert_parts(model, block)) bytes.push_back(room_of(parts));
    experts.bytes.push_back(std::move(bytes));
  }
  return experts;
}

Experts equal_experts(const Trace& trace, const Options& o) {
  const Index most = trace.expert.empty() ? 0 : *std::ranges::max_element(trace.expert) + 1;
  const Index number = o.experts > 0 ? o.experts : most;
  if (number < most)
    fail("--experts is ", number, ", expected at least ", most, ", for ", o.trace, " names expert ", most - 1);
  return {ExpertBytes(trace.layer_numbers.size(), std::vector<Index>(std::size_t(number), Index(o.expert_bytes)))};
}

/// The calls that only fill the memory.
Trace first_calls(const Trace& trace) {
  Trace first = trace;
  first.calls.resize(std::size_t(first_counted_call(trace)));
  return first;
}

std::vector<PlannedRun> runs_with(const Trace& trace, const Trace& first, const Experts& experts, Index memory,
                                  const PlannedMachine& machine) {
  const auto pins = hottest(first, Index(double(experts.number) * double(memory) / double(experts.all) / 2));
  return {plan_run(trace, experts.bytes, memory, "LRU", Lru(), machine),
          plan_run(trace, experts.bytes, memory, "half pinned", Pinned(pins), machine),
          plan_run(trace, experts.bytes, memory, "decayed counts", DecayedCounts(), machine),
          plan_run(trace, experts.bytes, memory, "MIN", BeladyMin(trace), machine)};
}

/// To three digits: 18.8 GB.
std::string bytes_text(double bytes) {
  constexpr auto units = std::to_array<const char*>({" B", " kB", " MB", " GB", " TB"});
  std::size_t unit = 0;
  for (; bytes >= 999.5 && unit + 1 < units.size(); ++unit) bytes /= 1000;
  return moe::detail::fixed(bytes, unit == 0 || bytes >= 99.95 ? 0 : bytes >= 9.995 ? 1 : 2) + units[unit];
}

std::string table_of(const std::vector<std::vector<PlannedRun>>& budgets, double all) {
  std::string table = "    memory          policy            hits   read a token   tokens/s   limit\n";
  for (const auto& runs : budgets) {
    for (const PlannedRun& run : runs) {
      const bool first = &run == &runs.front();
      table +=
          text("%10s %6s   %-14s %6.1f %% %14s %10.3g   %s\n", first ? bytes_text(double(run.memory)).c_str() : "",
               first ? text("%.3g %%", 100 * double(run.memory) / all).c_str() : "", run.policy.c_str(),
               100 * run.sum.hit_rate(), bytes_text(run.bytes_a_token()).c_str(), run.tokens_a_second(), run.limit());
    }
  }
  return table;
}

std::string repeated(const char* symbol, int times) {
  std::string all;
  for (int i = 0; i < times; ++i) all += symbol;
  return all;
}

/// Tokens a second of decayed counts, with a dot where MIN would be.
std::string chart_of(const std::vector<std::vector<PlannedRun>>& budgets) {
  double most = 0;
  for (const auto& runs : budgets) most = std::max(most, runs.back().tokens_a_second());
  constexpr int width = 60;
  std::string chart = "  tokens a second: █ decayed counts, · up to MIN\n";
  for (const auto& runs : budgets) {
    const double rate = runs[runs.size() - 2].tokens_a_second(), best = runs.back().tokens_a_second();
    const int bar = std::max(1, int(width * rate / most)), dots = std::max(0, int(width * best / most) - bar);
    chart += text("%10s  ", bytes_text(double(runs[0].memory)).c_str()) + repeated("█", bar) + repeated("·", dots) +
             text("  %.3g\n", rate);
  }
  return chart;
}

OrderedJson json_of(const PlannedRun& run) {
  return {{"policy", run.policy},
          {"memory", run.memory},
          {"hits", run.sum.hits},
          {"misses", run.sum.misses},
          {"hit_rate", run.sum.hit_rate()},
          {"bytes_a_token", run.bytes_a_token()},
          {"tokens_a_second", run.tokens_a_second()},
          {"limit", run.limit()},
          {"seconds", {{"all", run.time.total}, {"reading", run.time.reading}, {"computing", run.time.computing}}}};
}

std::vector<Index> budgets_of(const Options& o, double all, Index largest) {
  std::vector<Index> budgets;
  if (o.memory.empty()) {
    for (const double share : {.05, .1, .25, .5, .75, 1.}) {
      if (share * all >= double(largest)) budgets.push_back(Index(share * all));
    }
  }
  for (std::size_t first = 0; first < o.memory.size();) {
    const std::size_t end = std::min(o.memory.find(',', first), o.memory.size());
    const std::string said = o.memory.substr(first, end - first);
    const auto bytes = Index(parse_bytes("--memory", said, all));
    if (bytes < largest) fail("--memory is \"", said, "\", expected at least ", largest, " bytes, those of one expert");
    budgets.push_back(bytes);
    first = end + 1;
  }
  return budgets;
}

/// What came of a plan.
struct Measured {
  const PlannedRun* planned;
  moe::tools::Replayed run = {};
  std::string refused = {};  // why it did not run

  double tokens_a_second(const Options& o) const {
    return planned->tokens / (run.seconds + planned->tokens * o.besides);
  }
};

/// Runs of decayed counts, one after the other.
std::vector<Measured> measure(const Options& o, const Trace& trace, const std::vector<std::vector<PlannedRun>>& planned,
                              moe::ExecutorRef executor) {
  std::vector<Measured> all;
  moe::bench::Progress progress;
  for (const auto& runs : planned) {
    Measured its{&runs[runs.size() - 2]};
    progress.show(double(all.size()) / double(planned.size()),
                  bytes_text(double(its.planned->memory)) + " for experts");
    try {
      moe::tools::Replay replay(o.model, its.planned->memory, DecayedCounts(), executor);
      const Index first = first_counted_call(trace);
      replay.run(trace, 0, first);
      its.run = replay.run(trace, first, std::ssize(trace.calls));
    } catch (const Error& error) {
      its.refused = error.what();
    }
    all.push_back(std::move(its));
  }
  return all;
}

std::string table_of(const Options& o, const std::vector<Measured>& measured) {
  std::string table =
      "\nPlanned and measured, by decayed counts\n    memory      hits planned, measured      tokens/s planned, "
      "measured\n";
  for (const Measured& its : measured) {
    table += text("%10s", bytes_text(double(its.planned->memory)).c_str());
    if (!its.refused.empty()) {
      table += "   " + its.refused + "\n";
      continue;
    }
    const double planned = its.planned->tokens_a_second(), rate = its.tokens_a_second(o);
    table += text("   %12td %12td%s %14.3g %12.3g %+7.1f %%\n", its.planned->sum.hits, its.run.hits,
                  its.planned->sum.hits == its.run.hits ? "   exactly" : "          ", planned, rate,
                  100 * (rate / planned - 1));
  }
  return table;
}

std::string plan(const Options& o) {
  std::optional<Model> model;
  if (!o.model.empty()) model.emplace(o.model);
  const Index top_k = o.top_k > 0 ? o.top_k : model ? model->shape().top_k : 0;
  const Trace trace = read_trace(o.trace, {.top_k = top_k, .tokens = o.tokens});
  Experts experts = model ? experts_of(*model, trace, o.trace) : equal_experts(trace, o);
  Index largest = 0;
  for (const auto& layer : experts.bytes) {
    for (const Index bytes : layer) {
      experts.all += bytes, experts.number += bytes > 0;
      largest = std::max(largest, bytes);
    }
  }
  if (largest == 0) fail(o.model, ": no experts were found in its files");
  const auto budgets = budgets_of(o, double(experts.all), largest);
  if (o.disk == 0 && experts.file.empty()) fail("without MODEL there is no disk to measure: expected --disk 2.5GB/s");
  const Executor executor(o.threads);
  const double walk = bytes_of_walk(trace, experts.bytes);
  const auto compute = [&] {
    if (o.compute > 0) return o.compute;
    if (!model) return measure_memory();
    const double some = std::min(double(experts.all), std::max(2 * walk, double(std::size_t(512) << 20)));
    return moe::tools::measure_compute(o.model, trace, experts.bytes, Index(1.01 * some) + (Index(1) << 20),
                                       executor.ref());
  };
  const PlannedMachine machine{.disk = o.disk > 0 ? o.disk : disk_of(experts.file, std::size_t(largest)),
                               .compute = compute(),
                               .seconds_besides = o.besides};
  const Trace first = first_calls(trace);
  std::vector<std::vector<PlannedRun>> planned;
  for (const Index memory : budgets) planned.push_back(runs_with(trace, first, experts, memory, machine));
  std::vector<Measured> measured;
  if (o.measure) measured = measure(o, trace, planned, executor.ref());
  if (o.json) {
    OrderedJson json = {{"trace", o.trace},
                        {"layers", trace.layer_numbers.size()},
                        {"tokens", trace.num_tokens()},
                        {"tokens_that_count", planned[0][0].tokens},
                        {"experts", experts.number},
                        {"bytes_of_experts", experts.all},
                        {"bytes_of_a_token", walk},
                        {"disk", machine.disk},
                        {"compute", machine.compute},
                        {"seconds_besides", machine.seconds_besides},
                        {"runs", OrderedJson::array()}};
    for (const auto& runs : planned) {
      for (const PlannedRun& run : runs) json["runs"].push_back(json_of(run));
    }
    for (const Measured& its : measured) {
      OrderedJson run = {{"policy", its.planned->policy}, {"memory", its.planned->memory}};
      if (its.refused.empty()) {
        run.update({{"hits", its.run.hits},
                    {"misses", its.run.misses},
                    {"hit_rate", its.run.hit_rate()},
                    {"bytes_a_token", its.run.bytes_read / its.planned->tokens},
                    {"tokens_a_second", its.tokens_a_second(o)}});
      } else {
        run["refused"] = its.refused;
      }
      json["measured"].push_back(run);
    }
    return json.dump(2) + "\n";
  }
  const auto was_measured = [](double given) { return given > 0 ? "" : " (measured)"; };
  return text("%s: %zu layers, %td tokens, of which the first %.0f fill the memory and do not count\n", o.trace.c_str(),
              trace.layer_numbers.size(), trace.num_tokens(), double(trace.num_tokens()) - planned[0][0].tokens) +
         text("%td experts, %s; a token uses %s of them on average\n", experts.number,
              bytes_text(double(experts.all)).c_str(), bytes_text(walk).c_str()) +
         text("disk %s/s%s, experts computed at %s/s%s, %.3g ms a token besides\n\n", bytes_text(machine.disk).c_str(),
              was_measured(o.disk), bytes_text(machine.compute).c_str(), was_measured(o.compute), 1e3 * o.besides) +
         table_of(planned, double(experts.all)) + "\n" + chart_of(planned) + (o.measure ? table_of(o, measured) : "");
}

}  // namespace

int main(int argc, char** argv) try {
  Options options;
  if (const auto code = read_options(argc, argv, options)) return *code;
  const std::string report = plan(options);
  if (std::fputs(report.c_str(), stdout) < 0 || std::fflush(stdout) != 0) {
    return complain("standard output cannot be written");
  }
  return 0;
} catch (const std::exception& error) {
  return complain(error.what());
}
