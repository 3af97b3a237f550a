// What experts cost that do not fit in memory: a store against the mapped file under the same limit of memory, and
// against what the disk gives and what the arithmetic takes.
//
//   bench_store FOLDER            makes a model there (4 layers of Qwen3-30B-A3B's shape, 4.8 GB), if there is none
//
// One token at a time, through all layers, routed by a trace with the statistics of real ones. Each row is a process of
// its own, in a control group of its own where there may be one (version 1 or 2, as root), and begins with nothing of
// the model in the system's cache.
#include <fcntl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <numeric>
#include <optional>
#include <random>
#include <span>
#include <string>
#include <thread>
#include <tuple>
#include <utility>
#include <vector>

#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include "machine.hpp"
#include "moe/io/checkpoint.hpp"
#include "moe/io/expert_store.hpp"
#include "moe/io/store/measure_disk.hpp"
#include "moe/io/store/read_trace.hpp"
#include "moe/moe.hpp"

namespace moe::bench {
namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

struct Options {
  std::string folder;
  Index layers = 4, experts = 128, d_model = 2048, d_ff = 768, top_k = 6;
  Index warm = 30, tokens = 100, threads = default_threads(), readers = 4, read_kb = 4096;
  unsigned seed = 1;
  std::string policy = "decayed", row, trace;
  std::vector<double> shares = {10, 28, 59};
  double memory = 0;  // of a row
  bool touch = false;
  int rounds = 1;

  double expert_bytes() const { return 3. * double(d_model * d_ff) * sizeof(bfloat16); }
  double all_bytes() const { return double(layers * experts) * expert_bytes(); }
};

// ---- the model: row e of each router is a unit vector, so that x says which experts it wants

void make_model(const Options& options) {
  const auto& [d, ff, n] = std::tuple(options.d_model, options.d_ff, options.experts);
  const nlohmann::json config = {{"model_type", "qwen3_moe"},
                                 {"hidden_size", d},
                                 {"moe_intermediate_size", ff},
                                 {"num_experts", n},
                                 {"num_experts_per_tok", options.top_k},
                                 {"norm_topk_prob", true},
                                 {"hidden_act", "silu"},
                                 {"num_hidden_layers", options.layers}};
  const fs::path file = fs::path(options.folder) / "model.safetensors";
  if (fs::exists(file)) return;
  fs::create_directories(options.folder);
  std::ofstream(fs::path(options.folder) / "config.json") << config.dump(2);
  const Weight<bfloat16> router = Weight<float>::Identity(n, d).cast<bfloat16>();
  std::vector<Weight<bfloat16>> weights;  // a few, used again and again: what they are costs nothing
  for (unsigned i = 0; i < 3; ++i) {
    weights.push_back((0.02F * Weight<float>::Random(ff, d)).cast<bfloat16>());
  }
  std::vector<io::Tensor> tensors;
  const auto add = [&](const std::string& name, Index rows, Index cols, const Weight<bfloat16>& numbers) {
    tensors.push_back(io::make_tensor(name, {rows, cols}, std::span(numbers.data(), std::size_t(numbers.size()))));
  };
  char number[32];
  for (Index l = 0; l < options.layers; ++l) {
    const std::string block = "model.layers." + std::to_string(l) + ".mlp.";
    add(block + "gate.weight", n, d, router);
    for (Index e = 0; e < n; ++e) {
      std::snprintf(number, sizeof number, "experts.%lld.", static_cast<long long>(e));
      add(block + number + "down_proj.weight", d, ff, weights[std::size_t(e % 3)]);
      add(block + number + "gate_proj.weight", ff, d, weights[std::size_t((e + 1) % 3)]);
      add(block + number + "up_proj.weight", ff, d, weights[std::size_t((e + 2) % 3)]);
    }
  }
  io::write_safetensors(file, tensors);
}

void forget_pages(const fs::path& file) {
  const int f = ::open(file.c_str(), O_RDONLY);
  ::fdatasync(f);
  ::posix_fadvise(f, 0, 0, POSIX_FADV_DONTNEED);
  ::close(f);
}

// ---- the trace: experts of each token and layer. Score = popularity (Zipf) + topic + what lasts some tokens + chance;
// constants as in docs/out_of_core.md, where their statistics stand beside those of real traces.

/// Of a file, whose tokens begin anew where they end.
std::vector<std::vector<Index>> recorded_trace(const Options& options, Index tokens) {
  const io::Trace trace = io::read_trace(options.trace, {.top_k = options.top_k, .tokens = tokens});
  if (std::ssize(trace.layer_numbers) < options.layers) {
    io::fail(options.trace, ": has ", trace.layer_numbers.size(), " layers, expected at least ", options.layers);
  }
  std::vector<std::vector<std::vector<Index>>> layers(std::size_t(options.layers));
  std::vector<io::ExpertId> used;
  for (const io::Trace::Call& call : trace.calls) {
    if (call.layer >= options.layers) continue;
    trace.experts_of(call, used);
    auto& chosen = layers[std::size_t(call.layer)].emplace_back();
    for (const io::ExpertId& id : used) {
      if (id.expert >= options.experts) {
        io::fail(options.trace, ": names expert ", id.expert, ", expected fewer than ", options.experts);
      }
      chosen.push_back(id.expert);
    }
    if (std::ssize(chosen) != options.top_k) {
      io::fail(options.trace, ": a token has ", chosen.size(), " experts in a layer, expected ", options.top_k);
    }
  }
  std::vector<std::vector<Index>> all;
  for (Index t = 0; t < tokens; ++t) {
    for (const auto& its : layers) all.push_back(its[std::size_t(t) % its.size()]);
  }
  return all;
}

std::vector<std::vector<Index>> make_trace(const Options& options, Index tokens) {
  if (!options.trace.empty()) return recorded_trace(options, tokens);
  std::mt19937 bits(options.seed);
  std::normal_distribution<double> normal;
  std::uniform_real_distribution<double> uniform(1e-12, 1);
  const auto n = std::size_t(options.experts), layers = std::size_t(options.layers);
  std::vector<std::vector<double>> base(layers, std::vector<double>(n)), lasting = base, topic = base;
  for (auto& layer : base) {
    std::vector<Index> rank(n);
    std::iota(rank.begin(), rank.end(), Index(1));
    std::shuffle(rank.begin(), rank.end(), bits);
    for (std::size_t e = 0; e < n; ++e) layer[e] = -2.2 * std::log(double(rank[e]));
  }
  std::vector<std::vector<Index>> trace;
  for (Index t = 0; t < tokens; ++t) {
    const bool new_topic = t == 0 || uniform(bits) < 1. / 150;
    for (std::size_t l = 0; l < layers; ++l) {
      std::vector<std::pair<double, Index>> scores;
      for (std::size_t e = 0; e < n; ++e) {
        if (new_topic) topic[l][e] = uniform(bits) < 0.25 ? 4 : 0;
        lasting[l][e] = 0.5 * lasting[l][e] + std::sqrt(0.75) * normal(bits);
        const double chance = -std::log(-std::log(uniform(bits)));
        scores.emplace_back(base[l][e] + topic[l][e] + 3 * lasting[l][e] + chance, Index(e));
      }
      std::sort(scores.rbegin(), scores.rend());
      std::vector<Index> chosen;
      for (Index k = 0; k < options.top_k; ++k) chosen.push_back(scores[std::size_t(k)].second);
      trace.push_back(std::move(chosen));
    }
  }
  return trace;
}

// ---- the disk: random reads of experts past the system's cache, into huge pages

double measure_disk(const Options& options, double seconds) {
  const fs::path path = fs::path(options.folder) / "model.safetensors";
  return io::measure_disk(*io::open_stored_file(path), fs::file_size(path),
                          {.piece = std::size_t(options.expert_bytes()),
                           .threads = options.readers,
                           .seconds = seconds,
                           .seed = std::random_device{}()});
}

// ---- a row, in a process of its own

std::uint64_t number_in(const char* file, const std::string& key) {
  std::ifstream in(file);
  for (std::string line; std::getline(in, line);) {
    if (line.starts_with(key)) return std::strtoull(line.c_str() + key.size(), nullptr, 10);
  }
  return 0;
}

/// Ticks of all processors that were busy, and all.
std::pair<double, double> machine_ticks() {
  std::ifstream in("/proc/stat");
  std::string cpu;
  double user = 0, nice = 0, system = 0, idle = 0, waiting = 0, irq = 0, soft = 0;
  in >> cpu >> user >> nice >> system >> idle >> waiting >> irq >> soft;
  return {user + nice + system + irq + soft, user + nice + system + irq + soft + idle + waiting};
}

double seconds_of(const timeval& time) { return double(time.tv_sec) + 1e-6 * double(time.tv_usec); }

nlohmann::json run_row(const Options& options) {
  const fs::path file = fs::path(options.folder) / "model.safetensors";
  forget_pages(file);
  const std::uint64_t before_open = number_in("/proc/self/status", "VmRSS:");
  std::vector<AnyLayer<float>> layers;
  std::optional<io::ExpertStore> store;
  std::optional<io::Model> model;
  if (options.row == "mapped") {
    model.emplace(options.folder);
  } else {
    const io::AnyPolicy policy =
        options.policy == "lru" ? io::AnyPolicy(io::Lru()) : io::AnyPolicy(io::DecayedCounts());
    store.emplace(options.folder, io::StoreOptions{.memory = std::size_t(options.memory),
                                                   .policy = policy,
                                                   .threads = options.readers,
                                                   .read_bytes = std::size_t(options.read_kb) << 10});
  }
  for (Index l = 0; l < options.layers; ++l) {
    const std::string block = "model.layers." + std::to_string(l) + ".mlp";
    layers.push_back(store ? io::load_layer(*store, block).layer : io::load_layer(*model, block).layer);
  }
  Workspace<float> ws;
#ifdef _OPENMP
  OpenMp threads(options.threads);
#else
  Serial threads;
#endif
  nlohmann::json result;
  if (options.row == "batch") {
    Matrix<float> x = Matrix<float>::Constant(options.d_model, options.tokens, -1), y = x;
    std::mt19937 bits(options.seed);
    for (Index t = 0; t < x.cols(); ++t) {
      for (Index k = 0; k < options.top_k; ++k) x(Index(bits() % unsigned(options.experts)), t) = 3 - 0.3F * float(k);
    }
    const auto start = Clock::now();
    layers[0].forward(x, y, ws, threads);
    const double seconds = seconds_since(start);
    const io::StoreStats stats = store->stats();
    return {{"rate", double(stats.bytes_read) / seconds},
            {"experts", stats.misses},
            {"uses", stats.uses()},
            {"reading", stats.read_rate()},
            {"seconds", seconds}};
  }
  if (options.touch) {  // everything once, before it counts
    for (const auto& layer : layers) {
      Matrix<float> each = Matrix<float>::Constant(options.d_model, options.experts, -1), answers = each;
      for (Index e = 0; e < options.experts; ++e) each(e, e) = 3;
      layer.forward(each, answers, ws, threads);
    }
  }
  const Index all = options.warm + options.tokens;
  const auto trace = make_trace(options, all);
  Matrix<float> x = Matrix<float>::Constant(options.d_model, 1, 0.01F), y = x;
  std::uint64_t hash = 14695981039346656037U;
  std::vector<double> times;
  std::uint64_t read = 0;
  rusage used{};
  std::pair<double, double> ticks;
  io::StoreStats stats;
  double own = 0;
  for (Index t = 0; t < all; ++t) {
    if (t == options.warm) {
      read = number_in("/proc/self/io", "read_bytes:");
      ::getrusage(RUSAGE_SELF, &used);
      ticks = machine_ticks();
      own = seconds_of(used.ru_utime) + seconds_of(used.ru_stime);
      if (store) stats = store->stats();
    }
    const auto start = Clock::now();
    for (Index l = 0; l < options.layers; ++l) {
      for (Index e = 0; e < options.experts; ++e) x(e, 0) = -1 - 0.001F * float(e);
      const auto& chosen = trace[std::size_t(t * options.layers + l)];
      for (Index k = 0; k < options.top_k; ++k) x(chosen[std::size_t(k)], 0) = 3 - 0.3F * float(k);
      layers[std::size_t(l)].forward(x, y, ws, threads);
      for (Index i = 0; i < y.size(); ++i) {
        std::uint32_t number = 0;
        std::memcpy(&number, y.data() + i, sizeof number);
        hash = (hash ^ number) * 1099511628211U;
      }
    }
    if (t >= options.warm) times.push_back(seconds_since(start));
  }
  rusage now{};
  ::getrusage(RUSAGE_SELF, &now);
  const auto [busy, ticked] = machine_ticks();
  const double total = std::accumulate(times.begin(), times.end(), 0.), n = double(times.size());
  const double mine = seconds_of(now.ru_utime) + seconds_of(now.ru_stime) - own;
  std::sort(times.begin(), times.end());
  result = {{"tokens_per_second", n / total},
            {"median", times[times.size() / 2]},
            {"p95", times[times.size() * 95 / 100]},
            {"bytes", double(number_in("/proc/self/io", "read_bytes:") - read) / n},
            {"system", (seconds_of(now.ru_stime) - seconds_of(used.ru_stime)) / n},
            {"user", (seconds_of(now.ru_utime) - seconds_of(used.ru_utime)) / n},
            {"others", (busy - ticks.first - 100 * mine) / (ticked - ticks.second)},
            {"peak", 1024. * double(number_in("/proc/self/status", "VmHWM:"))},
            {"before", 1024. * double(before_open)},
            {"hash", hash}};
  if (store) {
    const io::StoreStats end = store->stats();
    const double hits = double(end.hits - stats.hits), uses = double(end.uses() - stats.uses());
    result["hits"] = hits / uses;
    result["waited"] = (end.seconds_waiting - stats.seconds_waiting) / n;
    result["reading"] = (end.seconds_reading - stats.seconds_reading) / n;
    result["resident"] = end.resident;
    result["table"] = to_table(end);
  }
  return result;
}

// ---- the control group of a row

class ControlGroup {
 public:
  ControlGroup() {
    for (const bool second : {false, true}) {
      path_ = second ? "/sys/fs/cgroup/moe_bench_store" : "/sys/fs/cgroup/memory/moe_bench_store";
      limit_ = second ? "memory.max" : "memory.limit_in_bytes";
      std::error_code error;
      fs::create_directory(path_, error);
      if (!error && fs::exists(fs::path(path_) / limit_)) return;
      fs::remove(path_, error);
    }
    path_.clear();
  }
  ~ControlGroup() {
    std::error_code ignored;
    if (!path_.empty()) ::rmdir(path_.c_str());
  }
  ControlGroup(const ControlGroup&) = delete;
  ControlGroup& operator=(const ControlGroup&) = delete;

  bool is_there() const { return !path_.empty(); }
  void limit(double bytes) const {
    if (is_there())
      std::ofstream(fs::path(path_) / limit_) << (bytes > 0                ? std::to_string(std::uint64_t(bytes))
                                                  : limit_ == "memory.max" ? "max"
                                                                           : "-1");
  }
  void enter() const {
    if (is_there()) std::ofstream(fs::path(path_) / "cgroup.procs") << ::getpid();
  }

 private:
  std::string path_, limit_;
};

nlohmann::json row(const Options& options, const ControlGroup& group, double limit, const std::string& what,
                   double memory, Index tokens, bool touch = false) {
  group.limit(limit);
  int ends[2];
  if (::pipe(ends) != 0) throw std::runtime_error("bench_store: no pipe");
  const pid_t child = ::fork();
  if (child == 0) {
    group.enter();
    ::dup2(ends[1], 1);
    ::close(ends[0]);
    ::setenv("OMP_WAIT_POLICY", "passive", 1);  // threads that spin take the cores that readers need
    const auto number = [](auto value) { return std::to_string(value); };
    std::vector<std::string> words = {"bench_store", options.folder,
                                      "--row",       what,
                                      "--memory",    number(std::uint64_t(memory)),
                                      "--tokens",    number(tokens),
                                      "--warm",      number(options.warm),
                                      "--layers",    number(options.layers),
                                      "--experts",   number(options.experts),
                                      "--d_model",   number(options.d_model),
                                      "--d_ff",      number(options.d_ff),
                                      "--top_k",     number(options.top_k),
                                      "--threads",   number(options.threads),
                                      "--readers",   number(options.readers),
                                      "--read_kb",   number(options.read_kb),
                                      "--seed",      number(options.seed),
                                      "--policy",    options.policy};
    if (!options.trace.empty()) words.insert(words.end(), {"--trace", options.trace});
    if (touch) words.push_back("--touch");
    std::vector<char*> arguments;
    for (const std::string& word : words) arguments.push_back(const_cast<char*>(word.c_str()));
    arguments.push_back(nullptr);
    ::execv("/proc/self/exe", arguments.data());
    ::_exit(1);
  }
  ::close(ends[1]);
  std::string text;
  char buffer[4096];
  for (ssize_t got = 0; (got = ::read(ends[0], buffer, sizeof buffer)) > 0;) text.append(buffer, std::size_t(got));
  ::close(ends[0]);
  int status = 0;
  ::waitpid(child, &status, 0);
  const auto result = nlohmann::json::parse(text, nullptr, false);
  return result.is_object() ? result : nlohmann::json{{"failed", status}};
}

void print(const std::string& name, const nlohmann::json& r, double probe, double budget) {
  if (r.contains("failed")) {
    std::printf("  %-22s failed (status %d)\n", name.c_str(), r["failed"].get<int>());
    return;
  }
  const double rate = r["tokens_per_second"], bytes = r["bytes"];
  std::printf(
      "  %-22s %7.2f tokens/s, median %6.1f ms, p95 %6.1f (%.2f x), %6.1f MB a token: %4.0f %% of the disk; "
      "system %5.1f ms, user %5.1f ms, others use %2.0f %%",
      name.c_str(), rate, 1e3 * r["median"].get<double>(), 1e3 * r["p95"].get<double>(),
      r["p95"].get<double>() / r["median"].get<double>(), bytes / 1e6, 100 * bytes * rate / probe,
      1e3 * r["system"].get<double>(), 1e3 * r["user"].get<double>(), 100 * r["others"].get<double>());
  if (r.contains("hits")) {
    std::printf("; hits %.3f, waits %.1f ms, reads for %.1f ms", r["hits"].get<double>(),
                1e3 * r["waited"].get<double>(), 1e3 * r["reading"].get<double>());
    if (budget > 0) {
      const double stated = budget + r["before"].get<double>() + r["resident"].get<double>();
      std::printf("; peak %.3f of budget", r["peak"].get<double>() / stated);
    }
  }
  std::printf("; bits %016llx\n", static_cast<unsigned long long>(r["hash"].get<std::uint64_t>()));
  std::fflush(stdout);
}

void compare(const Options& options) {
  make_model(options);
  const ControlGroup group;
  std::printf("%s, %lld threads, %s; %s\n", processor_name().c_str(), static_cast<long long>(options.threads),
              compiler_name().c_str(), options.folder.c_str());
  std::printf("%lld layers of %lld experts of %.2f MB, top-%lld: %.1f MB a token, %.2f GB in all; %s\n",
              static_cast<long long>(options.layers), static_cast<long long>(options.experts),
              options.expert_bytes() / 1e6, static_cast<long long>(options.top_k),
              double(options.layers * options.top_k) * options.expert_bytes() / 1e6, options.all_bytes() / 1e9,
              group.is_there() ? "limits by a control group" : "NO LIMITS: control groups are not writable here");
  const double slack = 64 << 20;
  const auto disk = [&] { return measure_disk(options, 1); };
  for (int round = 0; round < options.rounds; ++round) {
    std::printf("round %d\neverything fits\n", round + 1);
    double before = disk();
    const auto whole_mapped = row(options, group, 0, "mapped", 0, options.tokens, true);
    const auto whole = row(options, group, 0, "store", 1.002 * options.all_bytes(), options.tokens, true);
    print("mapped file", whole_mapped, before, 0);
    print("store", whole, before, 0);
    const double compute = whole.contains("failed") ? 0 : 1 / whole["tokens_per_second"].get<double>();
    for (const double percent : options.shares) {
      const double memory = std::floor(percent / 100 * options.all_bytes());
      const double limit = memory + slack + 32e6;  // and the program, its libraries and routers
      before = disk();
      const auto mapped = row(options, group, limit, "mapped", 0, options.tokens);
      const auto stored = row(options, group, limit, "store", memory, options.tokens);
      const double probe = (before + disk()) / 2;
      std::printf("%.0f %% of the experts: %.0f MB; the disk gives %.0f MB/s\n", percent, memory / 1e6, probe / 1e6);
      print("mapped file", mapped, probe, 0);
      print("store", stored, probe, memory);
      if (mapped.contains("failed") || stored.contains("failed")) continue;
      const double seconds = 1 / stored["tokens_per_second"].get<double>();
      const double bound = std::max(stored["bytes"].get<double>() / probe, compute);
      std::printf("  store / mapped file: %.2f; time / max(bytes / disk, compute): %.2f\n",
                  stored["tokens_per_second"].get<double>() / mapped["tokens_per_second"].get<double>(),
                  seconds / bound);
    }
    for (const Index tokens : {64, 512}) {
      before = disk();
      const auto batch = row(options, group, 0, "batch", std::floor(0.1 * options.all_bytes()), tokens);
      if (batch.contains("failed")) continue;
      std::printf(
          "a batch of %lld tokens, nothing in memory: %.0f MB/s, %.0f %% of the disk (%.0f %% while reading); "
          "%llu reads of %llu uses\n",
          static_cast<long long>(tokens), batch["rate"].get<double>() / 1e6, 100 * batch["rate"].get<double>() / before,
          100 * batch["reading"].get<double>() / before,
          static_cast<unsigned long long>(batch["experts"].get<std::uint64_t>()),
          static_cast<unsigned long long>(batch["uses"].get<std::uint64_t>()));
    }
  }
}

}  // namespace
}  // namespace moe::bench

int main(int argc, char** argv) {
  using namespace moe;
  bench::Options options;
  CLI::App app{"Experts that do not fit in memory: a store against the mapped file under the same limit."};
  app.add_option("folder", options.folder, "Of the model, on the disk in question")->required();
  const auto add = [&](const char* name, auto& value, const char* what) {
    app.add_option(name, value, what)->capture_default_str();
  };
  add("--layers", options.layers, "Of the model that is made");
  add("--experts", options.experts, "Of a layer");
  add("--d_model", options.d_model, "Of the model");
  add("--d_ff", options.d_ff, "Of an expert");
  add("--top_k", options.top_k, "Experts of a token");
  app.add_option("--shares", options.shares, "Percent of the experts that fit")->delimiter(',')->capture_default_str();
  add("--warm", options.warm, "Tokens before anything is measured");
  add("--tokens", options.tokens, "Tokens that are measured");
  add("--threads", options.threads, "That compute");
  add("--readers", options.readers, "Threads that read");
  add("--read_kb", options.read_kb, "Of one request, at most");
  add("--policy", options.policy, "decayed or lru");
  add("--trace", options.trace, "Which experts tokens use: any that moe_plan reads, make_trace.py's; default: made up");
  add("--seed", options.seed, "Of the trace");
  add("--rounds", options.rounds, "Each with all rows");
  add("--row", options.row, "One row alone, as JSON: mapped, store or batch");
  add("--memory", options.memory, "Bytes for experts, of a row");
  app.add_flag("--touch", options.touch, "A row begins with all experts once");
  CLI11_PARSE(app, argc, argv);
  try {
    if (options.row.empty()) {
      bench::compare(options);
    } else {
      std::printf("%s\n", bench::run_row(options).dump().c_str());
    }
  } catch (const std::exception& error) {
    std::fprintf(stderr, "bench_store: %s\n", error.what());
    return 1;
  }
}
