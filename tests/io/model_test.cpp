/// @file  A model's folder, opened once: what it lists, and what it gives.
#include "moe/io/model.hpp"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "compare.hpp"
#include "errors.hpp"
#include "load_layer.hpp"
#include "moe/experts/gated_ffn.hpp"
#include "moe/layers/dense.hpp"
#include "moe/models/random.hpp"
#include "temporary_folder.hpp"
#include "two_towers.hpp"

namespace {

namespace fs = std::filesystem;
using namespace moe;
using moe::test::same_bits;
using moe::test::TemporaryFolder;

const fs::path real = fs::path(MOE_SOURCE_DIR) / "tests/real", golden = fs::path(MOE_SOURCE_DIR) / "tests/golden";

void copy_model(const fs::path& from, const fs::path& to) {
  for (const char* const file : {"config.json", "model.safetensors"}) fs::copy_file(from / file, to / file);
}

Matrix<float> answer(const AnyLayer<float>& layer, std::uint64_t seed = 1) {
  return layer.forward(random_tokens<float>(layer.d_model(), 7, seed));
}

TEST(Model, ListsSparseAndDenseBlocksInTheOrderOfLayers) {
  const io::Model model(real / "qwen3_moe_steps");
  std::vector<std::pair<std::string, bool>> blocks;
  for (const io::Block& block : model.blocks()) blocks.emplace_back(block.name, block.sparse);
  EXPECT_EQ(blocks, (std::vector<std::pair<std::string, bool>>{{"model.layers.0.mlp", false},
                                                               {"model.layers.1.mlp", true},
                                                               {"model.layers.2.mlp", false},
                                                               {"model.layers.3.mlp", true}}));
  EXPECT_EQ(model.moe_blocks(), (std::vector<std::string>{"model.layers.1.mlp", "model.layers.3.mlp"}));
}

TEST(Model, OrdersLayersByNumberNotByLetters) {
  const std::vector<float> numbers(6, 0.5F);
  std::vector<io::Tensor> tensors;
  const auto add = [&](const std::string& name, Index rows, Index cols) {
    tensors.push_back(io::make_tensor(name, {rows, cols}, std::span(numbers).first(std::size_t(rows * cols))));
  };
  for (const std::string layer : {"2", "10", "9", "1"}) {
    const std::string mlp = "model.layers." + layer + ".mlp.";
    const std::vector<std::string> experts = layer == "10" || layer == "1"
                                                 ? std::vector<std::string>{mlp}
                                                 : std::vector{mlp + "experts.0.", mlp + "experts.1."};
    for (const std::string& prefix : experts) {
      add(prefix + "gate_proj.weight", 2, 3);
      add(prefix + "up_proj.weight", 2, 3);
      add(prefix + "down_proj.weight", 3, 2);
    }
    if (experts.size() == 2) add(mlp + "gate.weight", 2, 3);
  }
  const TemporaryFolder folder("model_order");
  std::ofstream(folder.path / "config.json")
      << R"({"model_type": "qwen3_moe", "hidden_size": 3, "moe_intermediate_size": 2, "num_experts": 2,
             "num_experts_per_tok": 1, "norm_topk_prob": true, "hidden_act": "silu"})";
  io::write_safetensors(folder.path / "model.safetensors", tensors);
  std::string names;
  for (const io::Block& block : io::Model(folder.path).blocks()) {
    names += block.name.substr(13) + (block.sparse ? " sparse, " : " dense, ");
  }
  EXPECT_EQ(names, "1.mlp dense, 2.mlp sparse, 9.mlp sparse, 10.mlp dense, ");
}

// Alternatives of what stands before experts ("experts." or nothing) do not make a second block of one.
TEST(Model, ExpertsOfABlockAreNoBlock) {
  EXPECT_EQ(io::Model(real / "step3p5").moe_blocks(), std::vector<std::string>{"layers.1.mlp"});
  EXPECT_EQ(io::Model(real / "granitemoe_native").moe_blocks(),
            std::vector<std::string>{"model.layers.0.block_sparse_moe"});
}

TEST(Model, ADenseFfnIsTheGatedFfnOfItsTensors) {
  const io::Model model(real / "qwen3_moe_steps");
  for (const std::string name : {"model.layers.0.mlp", "model.layers.2.mlp"}) {
    const auto weight = [&](const char* which) { return model.read(name + "." + which + ".weight"); };
    const GatedFfn<float> by_hand{weight("gate_proj"), weight("up_proj"), weight("down_proj")};
    const Matrix<float> x = random_tokens<float>(40, 7, /*seed=*/2);
    Matrix<float> y(40, 7);
    Scratch scratch;
    by_hand.forward(x, y, scratch);
    EXPECT_TRUE(same_bits(model.ffn(name).forward(x), y));
    EXPECT_TRUE(same_bits(model.ffn(name + ".").forward(x), y));
    EXPECT_GT(y.norm(), 0);
  }
}

TEST(Model, AnFfnThatIsNotThereNamesItsTensor) {
  const io::Model model(real / "qwen3_moe_steps");
  const std::string message = moe::test::error_of<io::Error>([&] { model.ffn("model.layers.4.mlp"); });
  EXPECT_NE(message.find("\"model.layers.4.mlp."), std::string::npos) << message;
  EXPECT_NE(message.find("did you mean"), std::string::npos) << message;
}

TEST(Model, LayersAreThoseOfLoadLayer) {
  const io::Model model(real / "qwen3_moe_steps");
  for (const std::string& block : model.moe_blocks()) {
    const auto loaded = model.layer(block), alone = io::load_layer(real / "qwen3_moe_steps", block);
    EXPECT_TRUE(same_bits(answer(loaded.layer), answer(alone.layer)));
    EXPECT_EQ(loaded.shape.num_experts, 8);
  }
}

/// Qwen3-Omni's thinker and talker in one folder, each of the type that its own config says.
TEST(Model, BlocksOfASecondTowerAreOfItsOwnConfig) {
  const TemporaryFolder folder("model_towers");
  const fs::path thinker = real / "qwen3_omni_moe_text", talker = real / "qwen3_omni_moe_talker_text";
  test::write_two_towers(folder.path, thinker, talker);
  const io::Model model(folder.path), alone(thinker), other(talker);
  EXPECT_EQ(model.config().text("model_type"), "qwen3_omni_moe_text");
  EXPECT_EQ(model.moe_blocks().size(), alone.moe_blocks().size() + other.moe_blocks().size());
  EXPECT_EQ(model.shape().d_ff_shared, 0);
  int of_talker = 0;
  for (const std::string& block : model.moe_blocks()) {
    const bool talks = block.starts_with("talker.");
    of_talker += talks;
    const io::Model& its = talks ? other : alone;
    EXPECT_EQ(model.config(block).text("model_type"), its.config().text("model_type"));
    EXPECT_EQ(model.shape(block), its.shape());
    const std::string layer = block.substr(block.find("layers."));
    const auto same = std::ranges::find_if(its.moe_blocks(), [&](const auto& name) { return name.ends_with(layer); });
    ASSERT_NE(same, its.moe_blocks().end()) << block;
    const auto loaded = model.layer(block);
    EXPECT_EQ(loaded.model_type, its.config().text("model_type"));
    EXPECT_TRUE(same_bits(answer(loaded.layer), answer(its.layer(*same).layer)));
  }
  EXPECT_EQ(of_talker, int(other.moe_blocks().size()));
}

TEST(Model, LoadsWhatItListsHoweverItIsCalledAndNamesTheConfigWhereItHasNoFolder) {
  const TemporaryFolder temporary("model_odd_names");
  const std::vector<io::Tensor> all = [] {
    std::vector<io::Tensor> renamed;
    const io::Tensors tensors = io::Tensors::open(real / "qwen3_moe_steps" / "model.safetensors");
    tensors.for_each_below("model.layers.1.mlp.", [&](io::Tensor tensor) {
      tensor.name.replace(0, sizeof "model.layers.1.mlp." - 1, "odd..");  // a block whose name ends with a dot
      renamed.push_back(tensor);
    });
    return renamed;
  }();
  io::write_safetensors(temporary.path / "model.safetensors", all);
  const io::Model model(io::Config::open(real / "qwen3_moe_steps" / "config.json"), io::Tensors::open(temporary.path));
  ASSERT_EQ(model.moe_blocks(), std::vector<std::string>{"odd."});
  EXPECT_TRUE(same_bits(answer(model.layer("odd.").layer),
                        answer(io::load_layer(real / "qwen3_moe_steps", "model.layers.1.mlp").layer)));
  const std::string message = moe::test::error_of<io::Error>([&] { model.layer("even"); });
  EXPECT_NE(message.find("config.json: no MoE block \"even\" among 1; did you mean \"odd.\"?"), std::string::npos)
      << message;
}

template <class Stored>
void expect_read(const io::Model& model, const std::string& name) {
  const io::Tensor tensor = model.tensors().at(name);
  ASSERT_EQ(tensor.dtype, io::dtype_name<Stored>);
  const auto stored = io::as<Stored>(tensor);
  const Weight<float> floats = model.read(name);
  const Weight<double> doubles = model.read<double>(name);
  ASSERT_EQ(floats.rows(), tensor.shape[0]);
  ASSERT_EQ(std::size_t(floats.size()), stored.size());
  for (Index i = 0; i < floats.size(); ++i) {
    ASSERT_EQ(floats.data()[i], static_cast<float>(stored[std::size_t(i)]));
    ASSERT_EQ(doubles.data()[i], static_cast<double>(floats.data()[i]));  // 16 bits are exact in both
  }
}

TEST(Model, ReadsNumbersWhateverTheirType) {
  const io::Model bf16(real / "qwen3_moe_bf16"), f16(real / "qwen2_moe_f16");
  expect_read<bfloat16>(bf16, bf16.moe_blocks().at(0) + ".experts.3.down_proj.weight");
  expect_read<float16>(f16, f16.moe_blocks().at(0) + ".experts.3.down_proj.weight");
  const std::string message = moe::test::error_of<io::Error>([&] { f16.read("no.such.tensor"); });
  EXPECT_NE(message.find("\"no.such.tensor\""), std::string::npos) << message;
}

// ---- access

// What a mapped file would not survive: written over where it lies, then shortened, then removed.
TEST(Model, ACopiedFileMayBeOverwrittenAndRemoved) {
  const TemporaryFolder folder("model_copied");
  copy_model(real / "qwen3_moe_steps", folder.path);
  const Matrix<float> sparse = answer(io::Model(real / "qwen3_moe_steps").layer("model.layers.1.mlp").layer);
  const Matrix<float> dense = answer(io::Model(real / "qwen3_moe_steps").ffn("model.layers.0.mlp"));
  const Weight<float> norm = io::Model(real / "qwen3_moe_steps").read("model.norm.weight");

  const io::Model model(folder.path, {.access = io::Access::copied});
  const auto before = model.layer("model.layers.1.mlp");
  const fs::path file = folder.path / "model.safetensors";
  const auto expect_unchanged = [&] {
    EXPECT_TRUE(same_bits(answer(before.layer), sparse));
    EXPECT_TRUE(same_bits(answer(model.layer("model.layers.1.mlp").layer), sparse));
    EXPECT_TRUE(same_bits(answer(model.ffn("model.layers.0.mlp")), dense));
    EXPECT_TRUE(same_bits(model.read("model.norm.weight"), norm));
  };
  {
    std::fstream in_place(file, std::ios::binary | std::ios::in | std::ios::out);
    const std::string garbage(std::size_t(fs::file_size(file)), '\x7f');
    in_place.write(garbage.data(), std::streamsize(garbage.size()));
    ASSERT_TRUE(in_place.good());
  }
  expect_unchanged();
  fs::resize_file(file, 1);
  expect_unchanged();
  fs::remove(file);
  fs::remove(folder.path / "config.json");
  expect_unchanged();
}

TEST(Model, WhatWasLoadedOutlivesTheModel) {
  const TemporaryFolder folder("model_outlived");
  copy_model(real / "qwen3_moe_steps", folder.path);
  auto model = std::make_unique<io::Model>(folder.path);
  const auto loaded = model->layer("model.layers.1.mlp");
  const Matrix<float> y = answer(loaded.layer);
  model.reset();
  EXPECT_TRUE(same_bits(answer(loaded.layer), y));
}

// ---- threads

TEST(Model, ThreadsMayLoadItsLayersAtOnce) {
  const io::Model model(real / "qwen3_moe_steps");
  const Matrix<float> first = answer(model.layer("model.layers.1.mlp").layer);
  const Matrix<float> third = answer(model.layer("model.layers.3.mlp").layer);
  ASSERT_FALSE(same_bits(first, third));
  constexpr int rounds = 50;
  std::vector<int> right(2);
  const auto load = [&](std::size_t thread) {
    for (int i = 0; i < rounds; ++i) {
      const bool takes_first = (std::size_t(i) + thread) % 2 == 0;
      const auto loaded = model.layer(takes_first ? "model.layers.1.mlp" : "model.layers.3.mlp");
      right[thread] += same_bits(answer(loaded.layer), takes_first ? first : third) ? 1 : 0;
    }
  };
  std::thread other(load, 1);
  load(0);
  other.join();
  EXPECT_EQ(right, (std::vector<int>{rounds, rounds}));
}

// ---- hub_code

// deepseek_v2 with norm_topk_prob: transformers' class scales and does not renormalise; DeepSeek's own code
// renormalises and does not scale.
TEST(Model, HubCodeRenormalisesDeepSeekV2WhereTransformersScales) {
  const fs::path folder = real / "deepseek_v2_norm";
  const io::Model by_class(folder), by_hub(folder, {.hub_code = true});
  const auto& scaled = std::get<TopKOptions>(by_class.shape().router);
  const auto& renormalised = std::get<TopKOptions>(by_hub.shape().router);
  EXPECT_FALSE(scaled.renormalize);
  EXPECT_EQ(scaled.scale, 1.7);
  EXPECT_TRUE(renormalised.renormalize);
  EXPECT_EQ(renormalised.scale, 1);

  const std::string block = by_class.moe_blocks().at(0);
  const auto weights = [&](const io::Model& model) {
    const auto layer = model.layer(block).layer;
    const Matrix<float> x = random_tokens<float>(layer.d_model(), 5, /*seed=*/3);
    Matrix<float> y(x.rows(), x.cols());
    Workspace<float> ws;
    layer.forward(x, y, ws);
    return std::pair(ws.routing.expert, ws.routing.weight);
  };
  const auto [experts, as_class] = weights(by_class);
  const auto [same_experts, as_hub] = weights(by_hub);
  EXPECT_EQ(experts, same_experts);
  const std::size_t k = std::size_t(scaled.top_k);
  ASSERT_EQ(as_class.size(), 5 * k);
  for (std::size_t t = 0; t < 5; ++t) {
    double sum = 0, hub_sum = 0;
    for (std::size_t i = t * k; i < (t + 1) * k; ++i) sum += double(as_class[i]), hub_sum += double(as_hub[i]);
    EXPECT_NEAR(hub_sum, 1, 1e-6);
    EXPECT_LT(sum, 1.7);
    for (std::size_t i = t * k; i < (t + 1) * k; ++i) EXPECT_NEAR(double(as_hub[i]), double(as_class[i]) / sum, 1e-6);
  }
}

TEST(Model, HubCodeChangesNothingWhereBothAgree) {
  const fs::path folder = real / "deepseek_v2";
  const io::Model by_class(folder), by_hub(folder, {.hub_code = true});
  const std::string block = by_class.moe_blocks().at(0);
  EXPECT_TRUE(same_bits(answer(by_class.layer(block).layer), answer(by_hub.layer(block).layer)));
}

}  // namespace
