/// @file  A store of experts: the bits of a model that is in memory, whatever the budget, the threads and the disk do.
#include "allocations.hpp"

#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <stdexcept>
#include <string>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "compare.hpp"
#include "errors.hpp"
#include "load_layer.hpp"
#include "moe/io/expert_store.hpp"
#include "moe/io/store/expert_bytes.hpp"
#include "moe/io/store/measure_disk.hpp"
#include "moe/io/store/simulate.hpp"
#include "moe/io/store/trace.hpp"
#include "moe/moe.hpp"
#include "pools.hpp"
#include "random.hpp"
#include "recorded_layers.hpp"
#include "repacked_model.hpp"
#include "small_model.hpp"
#include "temporary_folder.hpp"

namespace moe::io {
namespace {

namespace fs = std::filesystem;
using namespace std::chrono_literals;

// ---- files that do what disks do
// -------------------------------------------------------------------------------------

/// What a disk may do to reads, by chance that a seed decides.
struct Trouble {
  std::atomic<unsigned> seed{1};
  std::atomic<int> late_percent{0}, short_percent{0}, failing_percent{0};
  std::atomic<std::int64_t> late_microseconds{300};
  std::atomic<bool> stalls{false};  // until it is not
  std::atomic<int> reads{0};
  std::atomic<std::uint64_t> bad_block{0};  // the disk reads up to there; 0: there is none

  unsigned draw() {
    unsigned x = seed.fetch_add(0x9e3779b9U);
    x = (x ^ (x >> 16)) * 0x85ebca6bU;
    x = (x ^ (x >> 13)) * 0xc2b2ae35U;
    return (x ^ (x >> 16)) % 100;
  }
};

class TroubledFile final : public StoredFile {
 public:
  TroubledFile(std::unique_ptr<StoredFile> file, std::shared_ptr<Trouble> trouble)
      : file_(std::move(file)), trouble_(std::move(trouble)) {}

  std::size_t read(std::uint64_t offset, std::span<std::byte> to) const override {
    Trouble& trouble = *trouble_;
    ++trouble.reads;
    while (trouble.stalls) std::this_thread::sleep_for(1ms);
    const auto happens = [&](int percent) { return percent > 0 && int(trouble.draw()) < percent; };
    if (happens(trouble.late_percent))
      std::this_thread::sleep_for(std::chrono::microseconds(trouble.late_microseconds));
    if (happens(trouble.failing_percent)) throw std::system_error(EIO, std::generic_category());
    if (const std::uint64_t bad = trouble.bad_block; bad > 0 && offset <= bad && bad < offset + to.size()) {
      if (offset == bad) throw std::system_error(EIO, std::generic_category());
      to = to.first(std::size_t(bad - offset));
    }
    if (to.size() > block && happens(trouble.short_percent)) {
      const std::size_t blocks = to.size() / block;
      to = to.first((1 + trouble.draw() % blocks) * block);
    }
    return file_->read(offset, to);
  }
  bool is_direct() const override { return file_->is_direct(); }
  std::uint64_t disk() const override { return file_->disk(); }

 private:
  std::unique_ptr<StoredFile> file_;
  std::shared_ptr<Trouble> trouble_;
};

OpenFile troubled(const std::shared_ptr<Trouble>& trouble) {
  return [trouble](const fs::path& path) { return std::make_unique<TroubledFile>(open_stored_file(path), trouble); };
}

// ---- models
// ----------------------------------------------------------------------------------------------------------

/// All folders and files of tests/ that hold a model whose blocks load.
std::vector<fs::path> recorded_models() {
  std::vector<fs::path> models;
  for (const char* const folder : {"golden", "real", "real_quant/folders"}) {
    for (const auto& entry : fs::directory_iterator(fs::path(MOE_SOURCE_DIR "/tests") / folder)) {
      if (fs::exists(entry.path() / "model.gguf")) models.push_back(entry.path() / "model.gguf");
      if (fs::exists(entry.path() / "config.json")) models.push_back(entry.path());
    }
  }
  std::ranges::sort(models);
  return models;
}

/// Some tokens, each of which goes to some experts.
Routing<float> some_routes(Index num_tokens, Index num_experts, Index of_token, test::Random& random) {
  Routing<float> routing;
  for (Index t = 0; t < num_tokens; ++t) {
    std::set<Index> experts;
    while (std::ssize(experts) < std::min(of_token, num_experts)) experts.insert(random.below(num_experts));
    for (const Index e : experts) routing.add(t, e, float(random()));
  }
  return routing;
}

Matrix<float> answers(const AnyExperts<float>& group, const Routing<float>& routing, Index num_tokens,
                      ExecutorRef executor) {
  const Matrix<float> x = random_tokens<float>(group.d_model(), num_tokens, 1);
  PlanMemory<float> memory;
  const auto plan = plan_dispatch(routing, num_tokens, group.num_experts(), memory);
  CallScratch scratch;
  Workers workers(executor, scratch);
  Matrix<float> y = Matrix<float>::Zero(group.d_model(), num_tokens);
  group.apply(x, plan, y, workers);
  return y;
}

TEST(ExpertStore, BlocksOfEveryLayoutAndTypeHaveTheBitsOfTheModel) {
  Index num_blocks = 0;
  for (const fs::path& path : recorded_models()) {
    SCOPED_TRACE(path.string());
    std::optional<Model> model;
    std::vector<LayerParts<float>> parts;
    try {
      model.emplace(path);
      for (const std::string& block : model->moe_blocks()) parts.push_back(load_parts<float>(*model, block));
    } catch (const Error&) {
      continue;  // it is no model, or is of numbers that float layers do not read
    }
    if (parts.empty()) continue;
    std::size_t memory = 4_MiB;
    for (const bool all_fit : {true, false}) {
      const ExpertStore store(path, {.memory = memory, .threads = 1, .read_bytes = 4096});
      std::vector<LayerParts<float>> stored;
      for (const std::string& block : store.moe_blocks()) stored.push_back(load_parts<float>(store, block));
      test::Random random(7);
      for (std::size_t b = 0; b < parts.size(); ++b) {
        const Index n = parts[b].experts->num_experts();
        for (const Index num_tokens : {1, 3, 20}) {
          const Routing<float> routing = some_routes(num_tokens, n, 2, random);
          EXPECT_TRUE(test::same_bits(answers(*stored[b].experts, routing, num_tokens, Serial{}),
                                      answers(*parts[b].experts, routing, num_tokens, Serial{})));
        }
        EXPECT_EQ(stored[b].dtype, parts[b].dtype);
        ++num_blocks;
      }
      EXPECT_EQ(store.stats().evictions == 0, all_fit);
      memory = store.stats().bytes_of_walk;
    }
  }
  EXPECT_GT(num_blocks, 300);
}

/// A model's experts, in answers to so many tokens, where there is room for so many bytes.
void expect_same_answers(const AnyExperts<float>& stored, const AnyExperts<float>& expected, unsigned seed) {
  test::Random random(seed);
  for (const Index num_tokens : {1, 3, 20}) {
    const Routing<float> routing = some_routes(num_tokens, expected.num_experts(), 2, random);
    EXPECT_TRUE(test::same_bits(answers(stored, routing, num_tokens, Serial{}),
                                answers(expected, routing, num_tokens, Serial{})));
  }
}

TEST(ExpertStore, LayersInEverySchemeOfCodesHaveTheBitsOfTheModel) {
  Index num_schemes = 0;
  test::for_each_recorded_layer([&](const fs::path& folder, const fs::path&) {
    const LayerParts<float> parts = load_parts<float>(Model(folder), "mlp");
    const ExpertStore store(folder, {.memory = 1_MiB, .threads = 2, .read_bytes = 4096});
    expect_same_answers(*load_parts<float>(store, "mlp").experts, *parts.experts, 3);
    ++num_schemes;
  });
  EXPECT_GE(num_schemes, 50);
}

TEST(ExpertStore, CodesThatAreRepackedTakeTheBudgetAndHaveTheBitsOfTheModel) {
  for (const char* const scheme : {"gptq4_g32.v2", "gptq4_g32_actorder", "awq4_g32", "int4_g32_asym", "nf4_nested"}) {
    SCOPED_TRACE(scheme);
    const test::TemporaryFolder folder("store_repacked");
    test::repacked_model::Writer(scheme).write(folder.path);
    const LayerParts<float> parts = load_parts<float>(Model(folder.path), "mlp");
    const auto trouble = std::make_shared<Trouble>();
    trouble->late_percent = 20;
    trouble->short_percent = 20;
    std::size_t walk = 16_MiB, read_bytes = 4_MiB;
    for (const std::size_t room : {4U, 1U, 3U, 2U}) {
      const ExpertStore store(
          folder.path, {.memory = walk * room, .threads = 3, .read_bytes = read_bytes, .open = troubled(trouble)});
      const AnyExperts<float> experts = *load_parts<float>(store, "mlp").experts;
      EXPECT_LT(store.stats().resident, fs::file_size(folder.path / "model.safetensors") / 50) << "beside the experts";
      for (unsigned seed = 1; seed <= 2; ++seed) expect_same_answers(experts, *parts.experts, seed);
      EXPECT_EQ(store.stats().evictions > 0, room < 4);
      EXPECT_LE(store.stats().most_used, store.stats().memory);
      trouble->failing_percent = 30;
      std::string what;
      for (unsigned seed = 1; seed <= 2; ++seed) {
        what = test::error_of<Error>([&] { expect_same_answers(experts, *parts.experts, seed); });
        if (what != "no error") {
          EXPECT_NE(what.find("tensor \"mlp.experts."), what.npos) << what;
        }
      }
      trouble->failing_percent = 0;
      do {  // reads that were sent for before may fail a call, each once
        what = test::error_of<Error>([&] { expect_same_answers(experts, *parts.experts, 1); });
      } while (what != "no error");
      walk = store.stats().bytes_of_walk;
      read_bytes = room == 3 ? 4_MiB : 4096;
    }
  }
}

// ---- a model of two layers
// -------------------------------------------------------------------------------------------

using namespace test::small_model;

class SmallStore : public testing::Test {
 protected:
  SmallStore() { write_model(folder_.path); }

  static constexpr std::size_t walk = num_layers * top_k * expert_bytes, all = num_layers * num_experts * expert_bytes;

  ExpertStore open(std::size_t memory, AnyPolicy policy = DecayedCounts()) const {
    return {
        folder_.path,
        {.memory = memory, .policy = std::move(policy), .threads = 3, .read_bytes = 8192, .open = troubled(trouble_)}};
  }
  static std::vector<AnyLayer<float>> layers_of(const Model& model) {
    std::vector<AnyLayer<float>> layers;
    for (const std::string& block : model.moe_blocks()) layers.push_back(load_layer(model, block).layer);
    return layers;
  }
  /// Through all layers.
  static Matrix<float> forward(const std::vector<AnyLayer<float>>& layers, Matrix<float> x,
                               ExecutorRef executor = Serial{}) {
    Workspace<float> ws;
    for (const auto& layer : layers) {
      Matrix<float> y(x.rows(), x.cols());
      layer.forward(x, y, ws, executor);
      x = y;
    }
    return x;
  }
  static Matrix<float> tokens(Index count, unsigned seed) { return random_tokens<float>(d_model, count, seed); }

  test::TemporaryFolder folder_{"store"};
  std::shared_ptr<Trouble> trouble_ = std::make_shared<Trouble>();
};

/// Evicts by chance.
struct AnyOne {
  unsigned seed = 1;
  void used(std::span<const ExpertId>, Index) {}
  ExpertId victim(std::span<const ExpertId> candidates, Index) {
    seed = seed * 1664525U + 1013904223U;
    return candidates[(seed >> 8) % candidates.size()];
  }
};
static_assert(EvictionPolicy<AnyOne>);

TEST_F(SmallStore, BitsDependOnNoBudgetPolicyThreadsOrArrival) {
  const auto whole = layers_of(Model(folder_.path));
  trouble_->late_percent = 30;
  trouble_->short_percent = 30;
  std::uint64_t evictions = 0;
  const std::vector<ExpertId> pinned = {{0, 3}, {1, 5}};
  for (std::size_t budget = walk; budget <= all; budget += 3 * expert_bytes) {
    for (const AnyPolicy& policy :
         {AnyPolicy(DecayedCounts()), AnyPolicy(Lru()), AnyPolicy(Pinned(pinned)), AnyPolicy(AnyOne())}) {
      const ExpertStore store = open(budget, policy);
      const auto layers = layers_of(store);
      for (const Index count : {1, 2, 1, 17, 1, 300, 5, 1}) {
        const Matrix<float> x = tokens(count, unsigned(count));
        const Matrix<float> expected = forward(whole, x);
        EXPECT_TRUE(test::same_bits(forward(layers, x), expected)) << budget << " bytes, " << count << " tokens";
        EXPECT_TRUE(test::same_bits(forward(layers, x, test::OwnThreads{3}), expected));
        EXPECT_TRUE(test::same_bits(forward(layers, x, test::Shuffled{4, 5}), expected));
      }
      const StoreStats stats = store.stats();
      EXPECT_LE(stats.most_used, budget);
      EXPECT_EQ(stats.misses, stats.evictions + std::uint64_t(stats.experts_here));
      evictions += stats.evictions;
    }
  }
  EXPECT_GT(evictions, 1000U);
}

TEST_F(SmallStore, ARunIsWhatItsPlanSays) {
  const Model model(folder_.path);
  const Trace trace = [&] {
    TraceRecorder recorder;
    const auto layers = layers_of(model);
    Workspace<float> ws;
    Matrix<float> y(d_model, 1);
    for (unsigned token = 0; token < 200; ++token) {
      for (Index l = 0; l < num_layers; ++l) {
        layers[std::size_t(l)].forward(tokens(1, token), y, ws);
        recorder.add(l, ws.routing, 1);
      }
    }
    return recorder.trace();
  }();
  const ExpertBytes bytes = [&] {
    ExpertBytes each;
    for (const std::string& block : model.moe_blocks()) {
      each.emplace_back();
      for (const FileParts& parts : expert_parts(model, block)) each.back().push_back(room_of(parts));
    }
    return each;
  }();
  EXPECT_EQ(bytes[0][0], Index(expert_bytes));
  for (std::size_t budget = walk; budget <= all; budget += 2 * expert_bytes) {
    for (const AnyPolicy& policy : {AnyPolicy(DecayedCounts()), AnyPolicy(Lru()), AnyPolicy(BeladyMin(trace))}) {
      SimulatedCall plan;
      for (const SimulatedCall& call : simulate(trace, bytes, Index(budget), policy)) plan += call;
      const ExpertStore store = open(budget, policy);
      const auto layers = layers_of(store);
      Workspace<float> ws;
      Matrix<float> y(d_model, 1);
      for (unsigned token = 0; token < 200; ++token) {
        for (const auto& layer : layers) layer.forward(tokens(1, token), y, ws);
      }
      EXPECT_EQ(Index(store.stats().hits), plan.hits) << budget;
      EXPECT_EQ(Index(store.stats().misses), plan.misses) << budget;
      EXPECT_EQ(Index(store.stats().evictions), plan.evictions) << budget;
    }
  }
}

TEST_F(SmallStore, ManyCallsAtOnceWantMoreThanThereIsRoomFor) {
  const auto whole = layers_of(Model(folder_.path));
  trouble_->late_percent = 20;
  const ExpertStore store = open(walk);
  const auto layers = layers_of(store);
  std::atomic<int> wrong{0};
  std::vector<std::thread> threads;
  for (unsigned i = 0; i < 5; ++i) {
    threads.emplace_back([&, i] {
      for (unsigned round = 0; round < 20; ++round) {
        const Matrix<float> x = tokens(Index(1 + (i * 7 + round * 5) % 24), i * 100 + round);
        if (!test::same_bits(forward(layers, x), forward(whole, x))) ++wrong;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0);
  EXPECT_GT(store.stats().evictions, 100U);
}

TEST_F(SmallStore, AFailedReadIsAnErrorThatNamesItAndTheNextCallTriesAgain) {
  const auto whole = layers_of(Model(folder_.path));
  for (const int percent : {100, 20}) {
    const ExpertStore store = open(walk + expert_bytes);
    const auto layers = layers_of(store);
    Index failed = 0;
    const auto try_once = [&](const Matrix<float>& x) {
      try {
        EXPECT_TRUE(test::same_bits(forward(layers, x), forward(whole, x)));
        return true;
      } catch (const Error& error) {
        const std::string what = error.what();
        EXPECT_TRUE(what.starts_with((folder_.path / "model.safetensors").string() + ": tensor \"model.layers."));
        EXPECT_NE(what.find(" at byte "), what.npos) << what;
        EXPECT_NE(what.find("Input/output error"), what.npos) << what;
        ++failed;
        return false;
      }
    };
    for (unsigned round = 0; round < 40; ++round) {
      const Matrix<float> x = tokens(Index(1 + round % 20), round);
      trouble_->failing_percent = percent;
      try_once(x);
      trouble_->failing_percent = 0;
      Index tries = 1;  // reads that a call before has sent for may fail it, each once
      while (!try_once(x)) ++tries;
      EXPECT_LE(tries, num_layers * num_experts);
    }
    EXPECT_GT(failed, 10);
    EXPECT_GT(store.stats().failures, 10U);
  }
}

TEST_F(SmallStore, ABadBlockIsNamedByTheTensorThatItIsIn) {
  const Model model(folder_.path);
  const ExpertStore store = open(all);
  const AnyExperts<float> experts = *load_parts<float>(store, "model.layers.1.mlp").experts;
  for (const char* const name : {"gate_proj", "up_proj", "down_proj"}) {
    const std::string full = std::string("model.layers.1.mlp.experts.5.") + name + ".weight";
    const Tensor& tensor = *model.tensors().find(full);
    const auto middle = std::uint64_t(tensor.bytes.data() + tensor.bytes.size() / 2 -
                                      static_cast<const std::byte*>(tensor.owner.get()));
    trouble_->bad_block = middle / StoredFile::block * StoredFile::block;
    Routing<float> routing;
    routing.add(0, 5, 1);
    const std::string what = test::error_of<Error>([&] { answers(experts, routing, 1, Serial{}); });
    EXPECT_NE(what.find("tensor \"" + full + "\" at byte " + std::to_string(trouble_->bad_block) + " of the file"),
              what.npos)
        << what;
  }
}

TEST_F(SmallStore, AFileThatIsCutOrWrittenToIsAnErrorAndOneThatIsReplacedIsNot) {
  const fs::path file = folder_.path / "model.safetensors";
  const auto whole = layers_of(Model(folder_.path));
  const Matrix<float> x = tokens(9, 1), expected = forward(whole, x);
  {
    const ExpertStore store = open(walk);
    const auto layers = layers_of(store);
    fs::rename(file, folder_.path / "before");
    std::ofstream(file) << "something else";
    EXPECT_TRUE(test::same_bits(forward(layers, x), expected));
    fs::rename(folder_.path / "before", file);
  }
  const ExpertStore store = open(walk);
  const auto layers = layers_of(store);
  fs::resize_file(file, fs::file_size(file) - 5000);
  const std::string error = test::error_of<Error>([&] { forward(layers, x); });
  EXPECT_NE(error.find("was written to while it was open"), error.npos) << error;
  EXPECT_NE(error.find("tensor \"model.layers.0.mlp.experts."), error.npos) << error;
}

TEST_F(SmallStore, AStalledDiskHoldsUpThoseAloneWhoWaitForIt) {
  const auto whole = layers_of(Model(folder_.path));
  const ExpertStore store = open(all);
  const auto layers = layers_of(store);
  const Matrix<float> known = tokens(1, 1), unknown = tokens(24, 2);
  const Matrix<float> expected = forward(whole, known);
  forward(layers, known);
  trouble_->stalls = true;
  std::atomic<bool> done{false};
  std::thread waiting([&] {
    EXPECT_TRUE(test::same_bits(forward(layers, unknown), forward(whole, unknown)));
    done = true;
  });
  while (store.stats().misses <= 2 * num_layers) std::this_thread::yield();
  for (int i = 0; i < 10; ++i) EXPECT_TRUE(test::same_bits(forward(layers, known), expected));
  EXPECT_FALSE(done);
  trouble_->stalls = false;
  waiting.join();
}

TEST_F(SmallStore, ACallThatThrowsWhileReadsAreUnderWayLeavesNothingBehind) {
  struct Refuses {
    Index workers() const { return 2; }
    void for_each(Index, const Task&) const { throw std::runtime_error("refused"); }
  };
  const auto whole = layers_of(Model(folder_.path));
  trouble_->late_percent = 50;
  const ExpertStore store = open(walk);
  const auto layers = layers_of(store);
  for (unsigned round = 0; round < 20; ++round) {
    const Matrix<float> x = tokens(3, round);
    EXPECT_EQ(test::error_of<std::runtime_error>([&] { forward(layers, x, Refuses{}); }), "refused");
    EXPECT_TRUE(test::same_bits(forward(layers, x), forward(whole, x)));
  }
}

TEST_F(SmallStore, ABudgetThatCannotBeKeptIsRefusedWhenItIsOpened) {
  const std::size_t least = num_layers * top_k * 3 * d_model * d_ff * sizeof(bfloat16);
  EXPECT_EQ(test::error_of<Error>([&] { open(least - 1); }),
            folder_.path.string() + ": ExpertStore: memory is " + std::to_string(least - 1) +
                " bytes, expected at least " + std::to_string(least) +
                ", which is what one token uses: 2 of 8 experts in each of 2 layers");
  const ExpertStore nearly = open(least);  // blocks of the disk are whole ones: layers say how much that is
  load_layer(nearly, "model.layers.0.mlp");
  const std::string second = test::error_of<Error>([&] { load_layer(nearly, "model.layers.1.mlp"); });
  EXPECT_NE(second.find("expected at least " + std::to_string(walk)), second.npos) << second;
  const std::string large = test::error_of<Error>([&] { open(std::size_t(1) << 50); });
  EXPECT_NE(large.find("memory is 1125899906842624 bytes, expected at most "), large.npos) << large;
}

TEST_F(SmallStore, WhatFitsIsReadOnce) {
  const ExpertStore store = open(all);
  const auto layers = layers_of(store);
  const Matrix<float> x = tokens(40, 1);
  Matrix<float> y(d_model, 40);
  Workspace<float> ws;
  for (const auto& layer : layers) layer.forward(x, y, ws);
  const StoreStats first = store.stats();
  EXPECT_EQ(first.misses, std::uint64_t(first.experts_here));
  const int reads = trouble_->reads;
  for (int i = 0; i < 2; ++i) {
    for (const auto& layer : layers) layer.forward(x, y, ws);
  }
  EXPECT_EQ(trouble_->reads, reads);
  EXPECT_EQ(store.stats().misses, first.misses);
  EXPECT_EQ(store.stats().bytes_read, first.bytes_read);
}

TEST_F(SmallStore, AWarmCallAllocatesNothing) {
  if (!test::allocations_are_counted) GTEST_SKIP() << "nothing counts allocations under ThreadSanitizer";
  const ExpertStore store = open(all);
  const auto layers = layers_of(store);
  const Matrix<float> x = tokens(40, 1);
  Matrix<float> y(d_model, 40);
  Workspace<float> ws;
  const auto call = [&] {
    for (const auto& layer : layers) layer.forward(x, y, ws);
  };
  call();
  call();
  EXPECT_EQ(test::allocations_in(call), 0);
}

TEST_F(SmallStore, LayersOfTheSameBlockShareItsExperts) {
  const ExpertStore store = open(all);
  const auto layers = layers_of(store);
  forward(layers, tokens(30, 1));
  const std::uint64_t misses = store.stats().misses;
  const auto again = layers_of(ExpertStore(store));
  EXPECT_TRUE(test::same_bits(forward(again, tokens(30, 1)), forward(layers, tokens(30, 1))));
  EXPECT_EQ(store.stats().misses, misses);
  EXPECT_EQ(store.stats().experts, num_layers * num_experts);
}

TEST_F(SmallStore, ABatchReadsEachExpertOnceAndLeavesWhatTokensNeed) {
  const ExpertStore store = open(walk);
  const auto layers = layers_of(store);
  const AnyExperts<float> experts = *load_parts<float>(store, "model.layers.0.mlp").experts;
  Routing<float> token, batch;
  for (const Index e : {2, 5}) token.add(0, e, 1);
  for (Index t = 0; t < 16; ++t) batch.add(t, t % num_experts, 1);
  for (int i = 0; i < 3; ++i) answers(experts, token, 1, Serial{});
  const StoreStats before = store.stats();
  EXPECT_EQ(before.misses, 2U);
  answers(experts, batch, 16, Serial{});
  EXPECT_EQ(store.stats().misses + store.stats().hits, before.misses + before.hits + num_experts);
  EXPECT_EQ(store.stats().misses, before.misses + num_experts - 2);
  answers(experts, token, 1, Serial{});
  EXPECT_EQ(store.stats().misses, before.misses + num_experts - 2);
}

/// An expert that is no bank: a view of three matrices, with a clip of its own.
struct ClippedExpert {
  using Scalar = float;
  WeightMap<bfloat16> gate, up, down;

  Index d_model() const { return gate.cols(); }
  void forward(const ConstMatrixRef<float>& x, MatrixRef<float> y, Scratch&) const {
    const Matrix<float> hidden =
        ((gate.cast<float>() * x).cwiseMin(0.5F).array() * (up.cast<float>() * x).array()).matrix();
    y = down.cast<float>() * hidden;
  }
};

TEST_F(SmallStore, ExpertsOfAnyTypeAreViewsOfWhatIsLeased) {
  const Model model(folder_.path);
  const std::string block = "model.layers.1.mlp";
  std::vector<ClippedExpert> here;
  const auto matrix = [&](const std::string& name, Index rows, Index cols) {
    const Tensor* const tensor = model.tensors().find(name);
    return WeightMap<bfloat16>(as<bfloat16>(*tensor).data(), rows, cols, Eigen::OuterStride<>(cols));
  };
  for (Index e = 0; e < num_experts; ++e) {
    const std::string its = block + ".experts." + std::to_string(e);
    here.push_back({matrix(its + ".gate_proj.weight", d_ff, d_model), matrix(its + ".up_proj.weight", d_ff, d_model),
                    matrix(its + ".down_proj.weight", d_model, d_ff)});
  }
  trouble_->late_percent = 30;
  const ExpertStore store = open(walk);
  const auto group = store.group<ClippedExpert>(block, [](const ExpertTensors& its) {
    return ClippedExpert{its.matrix<bfloat16>("gate_proj.weight"), its.matrix<bfloat16>("up_proj.weight"),
                         its.matrix<bfloat16>("down_proj.weight")};
  });
  test::Random random(3);
  for (const Index count : {1, 2, 30, 1, 5, 200, 1}) {
    const Routing<float> routing = some_routes(count, num_experts, top_k, random);
    EXPECT_TRUE(
        test::same_bits(answers(group, routing, count, Serial{}), answers(ExpertList(here), routing, count, Serial{})));
  }
  EXPECT_GT(store.stats().evictions, 10U);
  const auto wrong = store.group<ClippedExpert>(block, [](const ExpertTensors& its) {
    const auto gate = its.matrix<bfloat16>("w_in");
    return ClippedExpert{gate, gate, gate};
  });
  const std::string error =
      test::error_of<Error>([&] { answers(wrong, some_routes(1, num_experts, 1, random), 1, Serial{}); });
  EXPECT_NE(error.find("an expert has no tensor \"w_in\", but \"down_proj.weight\", \"gate_proj.weight\""), error.npos)
      << error;
}

TEST_F(SmallStore, AChildProcessIsToldToOpenItsOwn) {
  const ExpertStore store = open(walk);
  const auto layers = layers_of(store);
  forward(layers, tokens(1, 1));
  const pid_t child = ::fork();
  if (child == 0) {
    {
      const ExpertStore copy = store;
      const std::string error = test::error_of<Error>([&] { forward(layers, tokens(1, 1)); });
      if (error.find("open one after fork()") == error.npos) ::_exit(1);
    }
    if (!test::under_thread_sanitizer) {
      const ExpertStore own = open(walk);
      forward(layers_of(own), tokens(9, 1));
    }
    ::_exit(0);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << status;
  EXPECT_EQ(forward(layers, tokens(1, 1)).rows(), d_model);
}

TEST_F(SmallStore, ASignalEndsAProcessWhoseReadsAreUnderWay) {
  if (test::under_thread_sanitizer) GTEST_SKIP() << "ThreadSanitizer lets no child process have threads";
  int ready[2];
  ASSERT_EQ(::pipe(ready), 0);
  const pid_t child = ::fork();
  if (child == 0) {
    const ExpertStore store = open(walk);
    const auto layers = layers_of(store);
    trouble_->late_percent = 100;
    for (unsigned round = 0;; ++round) {
      forward(layers, tokens(9, round));
      if (::write(ready[1], "x", 1) != 1) ::_exit(1);
    }
  }
  char byte = 0;
  ASSERT_EQ(::read(ready[0], &byte, 1), 1);
  ::kill(child, SIGTERM);
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGTERM) << status;
  ::close(ready[0]);
  ::close(ready[1]);
}

/// A file system that knows no direct reads, and gives any number of bytes.
class CachedFile final : public StoredFile {
 public:
  explicit CachedFile(fs::path path) : path_(std::move(path)) {}
  std::size_t read(std::uint64_t offset, std::span<std::byte> to) const override {
    std::ifstream file(path_, std::ios::binary);
    file.seekg(std::streamoff(offset));
    file.read(reinterpret_cast<char*>(to.data()), std::streamsize(std::min<std::size_t>(to.size(), 777)));
    return std::size_t(file.gcount());
  }
  bool is_direct() const override { return false; }
  std::uint64_t disk() const override { return 0; }

 private:
  fs::path path_;
};

/// Reads nothing, and keeps where it was asked to.
class BusyFile final : public StoredFile {
 public:
  std::size_t read(std::uint64_t offset, std::span<std::byte> to) const override {
    const std::lock_guard lock(mutex_);
    offsets_.insert(offset);
    sizes_.insert(to.size());
    std::this_thread::sleep_for(1ms);
    return to.size();
  }
  bool is_direct() const override { return direct; }
  std::uint64_t disk() const override { return 0; }

  bool direct = true;
  mutable std::mutex mutex_;
  mutable std::set<std::uint64_t> offsets_;
  mutable std::set<std::size_t> sizes_;
};

TEST(MeasureDisk, ReadsPiecesAnywhereInTheFile) {
  const BusyFile file;
  const std::uint64_t size = (std::uint64_t(64) << 20) + 100;
  const double rate = measure_disk(file, size, {.piece = 1000000, .threads = 3, .seconds = 0.1});
  EXPECT_GT(rate, 0);
  EXPECT_EQ(file.sizes_, std::set<std::size_t>{1000000 / 4096 * 4096});
  EXPECT_GT(file.offsets_.size(), 10U);
  for (const std::uint64_t offset : file.offsets_) {
    EXPECT_EQ(offset % StoredFile::block, 0U);
    EXPECT_LE(offset + *file.sizes_.begin(), size);
  }
}

TEST_F(SmallStore, ADiskThatCannotBeMeasuredIsAnErrorThatSaysWhy) {
  const ExpertStore store = open(walk);
  const auto layers = layers_of(store);
  const std::string what = test::error_of<Error>([&] { (void)store.measure_disk(0.01); });
  EXPECT_NE(what.find("model.safetensors: "), what.npos) << what;
  EXPECT_NE(what.find("bytes are too few to measure a disk, expected at least 67108864"), what.npos) << what;
  EXPECT_EQ(store.stats().disk, 0);
  BusyFile cached;
  cached.direct = false;
  EXPECT_EQ(test::error_of<Error>([&] { measure_disk(cached, 1 << 30); }),
            "its disk cannot be read past the system's cache, and so not be measured");
}

TEST_F(SmallStore, FilesThatAreNotReadDirectlyGiveTheSameAndTheTableSaysSo) {
  const auto whole = layers_of(Model(folder_.path));
  const ExpertStore store(
      folder_.path, {.memory = walk, .open = [](const fs::path& path) { return std::make_unique<CachedFile>(path); }});
  EXPECT_TRUE(test::same_bits(forward(layers_of(store), tokens(9, 1)), forward(whole, tokens(9, 1))));
  StoreStats stats = store.stats();
  EXPECT_EQ(moe::to_table(stats).find(" of the disk"), std::string::npos);
  stats.disk = 1e9;
  const std::string table = moe::to_table(stats);
  EXPECT_NE(table.find("files      1, 1 of them through the system's cache"), table.npos) << table;
  EXPECT_NE(table.find(" of the disk"), table.npos) << table;
}

TEST(ExpertStore, ADamagedScaleIsFoundWhenItsExpertArrives) {
  const test::TemporaryFolder folder("store_damaged");
  const fs::path file = folder.path / "model.gguf";
  fs::copy_file(MOE_SOURCE_DIR "/tests/real_quant/folders/gguf_qwen3moe_q8_0/model.gguf", file);
  const std::string name = "blk.0.ffn_down_exps.weight";
  std::streamoff at = 0;
  {
    const Model model(file);
    const Tensor* const tensor = model.tensors().find(name);
    ASSERT_NE(tensor, nullptr);
    at = tensor->bytes.data() - static_cast<const std::byte*>(tensor->owner.get());
  }
  {
    std::fstream damaged(file, std::ios::in | std::ios::out | std::ios::binary);
    damaged.seekp(at);
    damaged.write("\xff\x7f", 2);
  }
  const std::string at_once = test::error_of<Error>([&] { load_layer(Model(file), "blk.0"); });
  EXPECT_NE(at_once.find(" as a scale in row 0 of "), at_once.npos) << at_once;
  const ExpertStore store(file, {.memory = 1_MiB});
  const AnyExperts<float> experts = *load_parts<float>(store, "blk.0").experts;
  const auto use = [&](Index e) {
    Routing<float> routing;
    routing.add(0, e, 1);
    return test::error_of<Error>([&] { answers(experts, routing, 1, Serial{}); });
  };
  EXPECT_EQ(use(1), "no error");
  EXPECT_EQ(use(0), at_once);
}

TEST(Literals, AreBytes) {
  EXPECT_EQ(8_GiB, std::size_t(8) << 30);
  EXPECT_EQ(1.5_GiB, std::size_t(3) << 29);
  EXPECT_EQ(512_MiB, std::size_t(1) << 29);
}

}  // namespace
}  // namespace moe::io
