// Adapters that learn beside experts of a store: the bits of a model that is in memory, with room for one walk or for
// all.
#include <filesystem>
#include <stdexcept>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "compare.hpp"
#include "errors.hpp"
#include "learning_layers.hpp"
#include "moe/io/adapters.hpp"
#include "moe/io/expert_store.hpp"
#include "moe/models/random.hpp"
#include "moe/train.hpp"
#include "pools.hpp"
#include "random.hpp"
#include "small_model.hpp"
#include "temporary_folder.hpp"

namespace moe::io {
namespace {

namespace fs = std::filesystem;
using test::same_bits;

constexpr std::size_t walk = test::small_model::num_layers * test::small_model::top_k * test::small_model::expert_bytes;

/// What a layer computes of some tokens, and learns from that, in a few steps.
std::vector<Matrix<float>> learned(TrainableLayer<float>& layer, Index num_tokens, ExecutorRef executor) {
  AdamW<float> adam(layer.parameters(), {.learning_rate = 0.02});
  std::vector<Matrix<float>> all;
  const auto add = [&](const auto& numbers) { all.emplace_back(numbers.matrix()); };
  for (unsigned step = 1; step <= 3; ++step) {
    layer.workspace().side.seed = step;
    const Matrix<float> x = random_tokens<float>(layer.d_model(), num_tokens, step);
    Matrix<float> y(x.rows(), x.cols()), d_x = Matrix<float>::Constant(x.rows(), x.cols(), 0.5F);
    layer.forward(x, y, executor);
    set_to_zero(layer.gradients());
    layer.backward(x, y - x, d_x, executor);
    add(y);
    add(d_x);
    for (const auto& gradient : layer.gradients()) add(gradient.array());
    adam.step(layer.gradients());
  }
  for (const auto& parameter : layer.parameters()) add(parameter.array());
  return all;
}

void expect_same(const std::vector<Matrix<float>>& got, const std::vector<Matrix<float>>& expected) {
  ASSERT_EQ(got.size(), expected.size());
  for (std::size_t i = 0; i < got.size(); ++i) EXPECT_TRUE(same_bits(got[i], expected[i])) << i;
}

const LoraLayerOptions with_dropout{.router = {.rank = 2}, .experts = {.rank = 3, .dropout = 0.2}};

TEST(StoreLearning, HasTheBitsOfTheModelAtAnyBudget) {
  const test::TemporaryFolder folder("store_learning");
  test::small_model::write_model(folder.path);
  const Model model(folder.path);
  const std::string block = model.moe_blocks()[1];
  // One token; fewer than a stream; a stream; more than a block of tokens an expert.
  for (const Index num_tokens : {0, 1, 5, 33, 300}) {
    auto resident = load_lora_layer(model, block, with_dropout);
    const auto expected = learned(resident, num_tokens, Serial());
    for (const std::size_t memory : {walk, 2 * walk, 8 * walk}) {
      const ExpertStore store(folder.path, {.memory = memory, .threads = 2, .read_bytes = 8192});
      for (const bool threads : {false, true}) {
        auto layer = load_lora_layer(store, block, with_dropout);
        const test::Shuffled shuffled{3, 5};
        expect_same(learned(layer, num_tokens, threads ? ExecutorRef(shuffled) : ExecutorRef(Serial())), expected);
      }
      EXPECT_LE(store.stats().most_used, memory);
      if (num_tokens == 300) {
        EXPECT_EQ(store.stats().evictions > 0, memory < 2 * walk);  // of one layer of two
      }
    }
  }
}

TEST(StoreLearning, EveryModelThatTakesAdaptersTakesThemBesideAStore) {
  Index num_blocks = 0;
  for (const char* const kind : {"golden", "real", "real_quant/folders"}) {
    for (const auto& entry : fs::directory_iterator(fs::path(MOE_SOURCE_DIR "/tests") / kind)) {
      SCOPED_TRACE(entry.path().string());
      std::vector<TrainableLayer<float>> resident;
      std::string block;
      try {
        const Model model(entry.path());
        block = model.moe_blocks().at(0);
        resident.push_back(load_lora_layer(model, block));
        learned(resident[0], 5, Serial());  // some ask for inputs that are not there
        resident[0] = load_lora_layer(model, block);
      } catch (const std::exception&) {
        continue;
      }
      const auto expected = learned(resident[0], 5, Serial());
      std::size_t memory = std::size_t(4) << 20;
      for (int budget = 0; budget < 2; ++budget) {
        const ExpertStore store(entry.path(), {.memory = memory, .threads = 1, .read_bytes = 4096});
        for (const std::string& its : store.moe_blocks()) {
          auto layer = load_lora_layer(store, its);
          if (its == block) expect_same(learned(layer, 5, Serial()), expected);
        }
        memory = store.stats().bytes_of_walk;
      }
      ++num_blocks;
    }
  }
  EXPECT_GT(num_blocks, 60);
}

TEST(StoreLearning, AdaptersAreSavedAndMergedElsewhere) {
  const test::TemporaryFolder folder("store_learning_saved"), adapters("store_learning_adapters");
  test::small_model::write_model(folder.path);
  const ExpertStore store(folder.path, {.memory = walk});
  const std::string block = store.moe_blocks()[0];
  auto layer = load_lora_layer(store, block, with_dropout);
  learned(layer, 20, Serial());
  const std::string what = test::error_of<std::logic_error>([&] { layer.merged(); });
  EXPECT_NE(what.find("experts of a store stay in their files: merge the layer of a Model"), std::string::npos) << what;

  save_adapters(adapters.path, layer.named_adapters(block));
  auto resident = load_lora_layer(Model(folder.path), block, with_dropout);
  load_adapters(adapters.path, resident.named_adapters(block));
  const Matrix<float> x = random_tokens<float>(layer.d_model(), 7, 9);
  Matrix<float> y(x.rows(), x.cols()), expected(x.rows(), x.cols());
  layer.workspace().side.seed.reset();
  layer.forward(x, y);
  resident.forward(x, expected);
  EXPECT_TRUE(same_bits(y, expected));
}

}  // namespace
}  // namespace moe::io
