// Models that go back to their own form: what was not changed is the same bytes, what was changed is read again.
#include "moe/io/save_model.hpp"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "errors.hpp"
#include "learning_layers.hpp"
#include "moe/io/save_upcycled.hpp"
#include "moe/moe.hpp"
#include "moe/surgery.hpp"
#include "moe/train.hpp"
#include "recorded_folders.hpp"
#include "temporary_folder.hpp"

namespace moe::io {
namespace {

namespace fs = std::filesystem;
using test::error_of;

struct Folder : test::TemporaryFolder {
  Folder() : TemporaryFolder("save_model") {}
};

std::string text_of(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

void write_text(const fs::path& path, const std::string& text) { std::ofstream(path, std::ios::binary) << text; }

std::vector<std::string> files_in(const fs::path& folder) {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(folder)) names.push_back(entry.path().filename().string());
  std::ranges::sort(names);
  return names;
}

void expect_same_tensor(const Tensor& got, const Tensor& expected) {
  EXPECT_EQ(got.dtype, expected.dtype) << expected.name;
  EXPECT_EQ(got.shape, expected.shape) << expected.name;
  EXPECT_TRUE(std::ranges::equal(got.bytes, expected.bytes)) << expected.name;
}

void expect_same_tensors(const fs::path& got, const fs::path& expected) {
  const Tensors ours = Tensors::open(got), theirs = Tensors::open(expected);
  EXPECT_EQ(ours.names(), theirs.names());
  for (const std::string& name : theirs.names()) {
    if (ours.contains(name)) expect_same_tensor(ours.at(name), theirs.at(name));
  }
}

using Numbers = std::map<std::string, Weight<float>>;

Numbers numbers_of(const TrainableLayer<float>& layer) {
  Numbers all;
  for (const auto& parameter : layer.parameters()) all[parameter.name] = parameter.matrix();
  return all;
}

// ------------------------------------------------------------------------------------- folders that transformers wrote

class SavedFolder : public testing::TestWithParam<test::RecordedFolder> {};

/// Every block, loaded to learn.
struct Layers {
  std::vector<std::string> names = {};
  std::vector<TrainableLayer<float>> layers = {};

  explicit Layers(const Model& model) : names(model.moe_blocks()) {
    for (const std::string& name : names) layers.push_back(load_trainable_layer(model, name));
  }

  std::vector<ModelBlock> blocks() {
    std::vector<ModelBlock> all;
    for (std::size_t i = 0; i < layers.size(); ++i) all.push_back(block_of(names[i], layers[i]));
    return all;
  }
};

TEST_P(SavedFolder, IsTheSameBytesIfNothingWasChangedAndReadAgainIfItWas) {
  const fs::path& folder = GetParam().path;
  ASSERT_TRUE(fs::exists(folder / "config.json")) << folder;
  if (folder.filename() == "doge") {
    EXPECT_THROW(Model{folder}, Error);  // product keys, which are no part of this library
    return;
  }
  const Model model(folder);
  Layers all(model);
  ASSERT_FALSE(all.layers.empty());

  const test::TemporaryFolder out("saved_" + GetParam().name);
  if (model.layer(all.names[0]).dtype == "MXFP4") {  // which nothing here writes
    const std::string error = error_of<Error>([&] { save_model(out.path / "same", model, all.blocks()); });
    EXPECT_NE(error.find("is quantised (MXFP4)"), std::string::npos) << error;
    EXPECT_TRUE(files_in(out.path).empty());
    return;
  }
  save_model(out.path / "same", model, all.blocks(), {.max_shard_bytes = 20'000});
  expect_same_tensors(out.path / "same", folder);
  EXPECT_EQ(text_of(out.path / "same" / "config.json"), text_of(folder / "config.json"));

  for (auto& layer : all.layers) {
    for (const auto& parameter : layer.parameters()) parameter.array() *= 2;  // exact in every type
  }
  save_model(out.path / "changed", model, all.blocks());
  EXPECT_EQ(text_of(out.path / "changed" / "config.json"), text_of(folder / "config.json"));
  const Model changed(out.path / "changed");
  for (std::size_t i = 0; i < all.layers.size(); ++i) {
    EXPECT_EQ(numbers_of(load_trainable_layer(changed, all.names[i])), numbers_of(all.layers[i])) << all.names[i];
  }
  EXPECT_EQ(files_in(out.path), (std::vector<std::string>{"changed", "same"}));
}

INSTANTIATE_TEST_SUITE_P(Folders, SavedFolder,
                         testing::ValuesIn(test::recorded_folders("tests/real", "MOE_REAL_DIR", "blocks.safetensors")),
                         test::name_of);

/// The same block without its last expert.
ModelBlock without_last_expert(ModelBlock block) {
  const auto last = std::ranges::max_element(block.parameters, {}, [](const AnyParameter& parameter) {
    return parameter.name.starts_with("experts.") ? std::atoi(parameter.name.c_str() + 8) : -1;
  });
  const std::string prefix = last->name.substr(0, last->name.find('.', 8) + 1);
  std::erase_if(block.parameters, [&](const AnyParameter& parameter) { return parameter.name.starts_with(prefix); });
  for (AnyParameter& parameter : block.parameters) {
    if (parameter.name == "gate.weight") --parameter.rows;
    if (parameter.name == "gate.bias" || parameter.name == "gate.selection_bias") --parameter.cols;
  }
  return block;
}

TEST(SaveModel, PrunedLayersAreSaidInEveryLayout) {
  for (const char* const name :
       {"qwen3_moe", "mixtral", "gpt_oss", "dbrx", "granitemoe", "llama4_text", "ernie4_5_moe", "phimoe"}) {
    SCOPED_TRACE(name);
    const Model model(fs::path("tests/real") / name);
    Layers all(model);
    ASSERT_EQ(all.names, model.moe_blocks());
    const Folder out;
    std::vector<ModelBlock> blocks = all.blocks();
    const std::size_t whole = blocks[0].parameters.size();
    for (ModelBlock& block : blocks) block = without_last_expert(std::move(block));
    ASSERT_LT(blocks[0].parameters.size(), whole);
    save_model(out.path / name, model, blocks);

    const Model pruned(out.path / name);
    EXPECT_EQ(pruned.shape().num_experts, model.shape().num_experts - 1);
    EXPECT_EQ(pruned.shape().d_ff, model.shape().d_ff);
    for (std::size_t i = 0; i < blocks.size(); ++i) {
      const Numbers got = numbers_of(load_trainable_layer(pruned, all.names[i])), before = numbers_of(all.layers[i]);
      EXPECT_LT(got.size(), before.size());
      for (const auto& [parameter, numbers] : got) {
        EXPECT_EQ(numbers, before.at(parameter).topLeftCorner(numbers.rows(), numbers.cols())) << parameter;
      }
    }
    auto config = nlohmann::json::parse(text_of(out.path / name / "config.json"));
    const auto old = nlohmann::json::parse(text_of(model.folder() / "config.json"));
    EXPECT_EQ(nlohmann::json::diff(old, config).size(), 1u) << nlohmann::json::diff(old, config);
  }
}

// ------------------------------------------------------------------------------------------------------- a model of
// ours

constexpr Index d = 6, ff = 5, experts = 4;

auto layer_of(unsigned seed, Index n = experts, const TopKOptions& options = {.top_k = 2, .renormalize = true}) {
  return MoeLayer(LinearTopK<float>(random_weight<float>(n, d, seed), options), random_bank<float>(n, d, ff, seed + 1));
}

/// A mixtral of two blocks, in a folder with other files.
void write_mixtral(const fs::path& folder, const std::string& extra = "") {
  fs::create_directories(folder);
  write_text(folder / "config.json", R"({"model_type": "mixtral", "hidden_size": 6, "intermediate_size": 5,
    "num_local_experts": 4, "num_experts_per_tok": 2, "hidden_act": "silu")" +
                                         extra + "}");
  write_text(folder / "tokenizer.json", "{}");
  std::vector<Weight<float>> numbers;
  std::vector<std::string> names;
  const auto add = [&](const std::string& name, const Weight<float>& weight) {
    names.push_back(name);
    numbers.push_back(weight);
  };
  add("model.embed_tokens.weight", random_weight<float>(9, d, 90));
  for (const std::string layer : {"0", "1"}) {
    const std::string block = "model.layers." + layer + ".block_sparse_moe.";
    auto its = layer_of(10 * unsigned(layer[0]));
    for (const auto& parameter : parameters(its)) {
      std::string name = parameter.name;
      for (const auto& [ours, theirs] : {std::pair("gate_proj", "w1"), {"up_proj", "w3"}, {"down_proj", "w2"}}) {
        if (const auto at = name.find(ours); at != name.npos) name.replace(at, std::strlen(ours), theirs);
      }
      add(block + name, parameter.matrix());
    }
  }
  std::vector<Tensor> tensors;
  for (std::size_t i = 0; i < names.size(); ++i) {
    tensors.push_back(make_tensor(names[i], {numbers[i].rows(), numbers[i].cols()},
                                  std::span<const float>(numbers[i].data(), std::size_t(numbers[i].size()))));
  }
  write_safetensors(folder / "model.safetensors", tensors, {{"format", "pt"}, {"by", "us"}});
}

const std::vector<std::string> both = {"model.layers.0.block_sparse_moe", "model.layers.1.block_sparse_moe"};

TEST(SaveModel, AKeptExpertIsThatExpertAfterwards) {
  const Folder folder;
  write_mixtral(folder.path / "old");
  const Model model(folder.path / "old");
  auto first = keep_experts(layer_of(1), {0, 2, 3}), second = keep_experts(layer_of(3), {0, 1, 3});
  save_model(folder.path / "new", model, {block_of(both[0], first), block_of(both[1], second)});

  const Model pruned(folder.path / "new");
  const Matrix<float> x = random_tokens<float>(d, 30, 5);
  EXPECT_EQ(pruned.layer(both[0]).layer.forward(x), first.forward(x));
  EXPECT_EQ(pruned.layer(both[1]).layer.forward(x), second.forward(x));
  expect_same_tensor(pruned.tensors().at("model.embed_tokens.weight"), model.tensors().at("model.embed_tokens.weight"));
  EXPECT_EQ(pruned.tensors().names().size(), model.tensors().names().size() - 2 * 3);
  EXPECT_EQ(pruned.tensors().metadata(), model.tensors().metadata());
  EXPECT_EQ(files_in(folder.path / "new"),
            (std::vector<std::string>{"config.json", "model.safetensors", "tokenizer.json"}));
}

TEST(SaveModel, BlocksAreAlikeOrRefused) {
  const Folder folder;
  write_mixtral(folder.path / "old");
  const Model model(folder.path / "old");
  auto pruned = keep_experts(layer_of(1), {0, 2, 3});
  EXPECT_EQ(error_of<Error>([&] { save_model(folder.path / "new", model, {block_of(both[0], pruned)}); }),
            "\"" + both[0] + "\" has 3 experts of width 5, top-2, and \"" + both[1] +
                "\" 4 experts of width 5, top-2 as it was: config.json says one of all blocks, so all must be alike");
  EXPECT_EQ(files_in(folder.path), std::vector<std::string>{"old"});
}

TEST(SaveModel, TopKIsWrittenAndOtherOptionsAreRefused) {
  const Folder folder;
  write_mixtral(folder.path / "old");
  const Model model(folder.path / "old");
  auto one = layer_of(1, experts, {.top_k = 1, .renormalize = true});
  save_model(folder.path / "new", model, {block_of(both[0], one), block_of(both[1], one)});
  EXPECT_EQ(Model(folder.path / "new").shape().top_k, 1);

  auto other = layer_of(1, experts, {.top_k = 2});
  EXPECT_NE(error_of<Error>([&] {
              save_model(folder.path / "no", model, {block_of(both[0], other)});
            }).find("its router has other options"),
            std::string::npos);
}

TEST(SaveModel, WhatTheFormHasNoTensorForIsRefusedByName) {
  const Folder folder;
  write_mixtral(folder.path / "old");
  const Model model(folder.path / "old");
  const auto error = [&](auto layer, const std::string& name = both[0]) {
    return error_of<Error>([&] { save_model(folder.path / "new", model, {block_of(name, layer)}); });
  };
  const std::string who = "\"" + both[0] + "\": ";
  EXPECT_EQ(
      error(WithSharedExpert(layer_of(1), random_bank<float>(1, d, ff, 7))),
      who + "the layer has shared_expert.down_proj.weight and 2 others, which the model's form has no tensor for");
  EXPECT_EQ(error(AffineOutput(layer_of(1), 1.0F, Vector<float>(Vector<float>::Ones(d)))),
            who + "the layer has bias, which the model's form has no tensor for");
  EXPECT_EQ(error(MoeLayer(LinearTopK<float>(random_weight<float>(experts, d, 1), {.top_k = 2, .renormalize = true}, {},
                                             Vector<float>::Ones(experts)),
                           random_bank<float>(experts, d, ff, 2))),
            who + "the layer has gate.selection_bias, which the model's form has no tensor for");
  EXPECT_EQ(error(MoeLayer(LinearTopK<float>(random_weight<float>(experts, 7, 1), {.top_k = 2, .renormalize = true}),
                           random_bank<float>(experts, 7, ff, 2))),
            who + "gate.weight has shape [4, 7], expected [4, 6] of tensor \"" + both[0] + ".gate.weight\" [4, 6]");
  EXPECT_NE(
      error(merge_experts(layer_of(1), {{0, 1}}, {1, 1, 1, 1})).find("gate.weight has shape [4, 6], expected [3, 6]"),
      std::string::npos);
  EXPECT_NE(error(layer_of(1), "model.layers.3.block_sparse_moe").find("did you mean"), std::string::npos);
  EXPECT_NE(error(MoeLayer(LinearTopK<float>(random_weight<float>(experts, d, 1), {.top_k = 2, .renormalize = true}),
                           with_lora(random_bank<float>(experts, d, ff, 2), {.rank = 2})))
                .find("has an adapter of rank 2"),
            std::string::npos);
  EXPECT_EQ(files_in(folder.path), std::vector<std::string>{"old"});
}

TEST(SaveModel, AdaptersOfATrainableLayerAreAddedIn) {
  const Folder folder;
  write_mixtral(folder.path / "old");
  const Model model(folder.path / "old");
  auto layer = load_lora_layer(model, both[1], {.experts = {.rank = 2}});
  for (const auto& parameter : layer.parameters()) {
    parameter.matrix() = random_weight<float>(parameter.rows, parameter.cols, 77);
  }
  save_model(folder.path / "new", model, {block_of(both[1], layer)});
  const Matrix<float> x = random_tokens<float>(d, 30, 5);
  const Matrix<float> merged = Model(folder.path / "new").layer(both[1]).layer.forward(x);
  EXPECT_EQ(merged, layer.merged().forward(x));
  EXPECT_NE(merged, model.layer(both[1]).layer.forward(x));
}

TEST(SaveModel, ShardsAreTheHubs) {
  const Folder folder;
  write_mixtral(folder.path / "old");
  const Model model(folder.path / "old");
  constexpr std::size_t most = 600;
  save_model(folder.path / "new", model, {}, {.max_shard_bytes = most, .other_files = false});
  expect_same_tensors(folder.path / "new", folder.path / "old");

  const auto index = nlohmann::json::parse(text_of(folder.path / "new" / "model.safetensors.index.json"));
  std::map<std::string, std::size_t> bytes;
  std::size_t total = 0;
  for (const auto& [tensor, shard] : index["weight_map"].items()) {
    bytes[shard.get<std::string>()] += model.tensors().at(tensor).bytes.size();
    total += model.tensors().at(tensor).bytes.size();
  }
  EXPECT_EQ(index["metadata"]["total_size"], total);
  std::vector<std::string> files = {"config.json", "model.safetensors.index.json"};
  for (const auto& [shard, size] : bytes) {
    EXPECT_LE(size, most) << shard;
    files.push_back(shard);
    EXPECT_EQ(read_safetensors(folder.path / "new" / shard).metadata.at("format"), "pt");
  }
  std::ranges::sort(files);
  EXPECT_EQ(files_in(folder.path / "new"), files);
  EXPECT_TRUE(bytes.contains("model-00001-of-" + std::string(5 - std::to_string(bytes.size()).size(), '0') +
                             std::to_string(bytes.size()) + ".safetensors"));
  EXPECT_GE(bytes.size(), 5u);
}

TEST(SaveModel, AFolderThatIsThereStaysUnlessItIsToBeOverwritten) {
  const Folder folder;
  write_mixtral(folder.path / "old");
  const Model model(folder.path / "old");
  const fs::path target = folder.path / "new";
  fs::create_directory(target);
  EXPECT_EQ(error_of<Error>([&] { save_model(target, model, {}); }),
            target.string() + ": is there already: choose another name, or ask to overwrite it");
  write_text(target / "thesis.txt", "years");
  EXPECT_NE(error_of<Error>([&] { save_model(target, model, {}, {.overwrite = true}); }).find("holds no config.json"),
            std::string::npos);
  EXPECT_EQ(text_of(target / "thesis.txt"), "years");
  write_text(target / "config.json", "{}");
  fs::create_directory(target / "photos");
  EXPECT_NE(
      error_of<Error>([&] { save_model(target, model, {}, {.overwrite = true}); }).find("holds the folder photos"),
      std::string::npos);
  fs::remove(target / "photos");
  save_model(target, model, {}, {.overwrite = true});
  expect_same_tensors(target, folder.path / "old");
  EXPECT_FALSE(fs::exists(target / "thesis.txt"));
  EXPECT_EQ(files_in(folder.path), (std::vector<std::string>{"new", "old"}));
}

TEST(SaveModel, AModelCanTakeItsOwnPlace) {
  const Folder folder;
  write_mixtral(folder.path / "old");
  const Model model(folder.path / "old");
  auto layer = layer_of(50);
  save_model(folder.path / "old" / "", model, {block_of(both[0], layer)}, {.overwrite = true});
  const Matrix<float> x = random_tokens<float>(d, 30, 5);
  EXPECT_EQ(Model(folder.path / "old").layer(both[0]).layer.forward(x), layer.forward(x));
  EXPECT_NE(model.layer(both[0]).layer.forward(x), layer.forward(x));  // the old one, still mapped
  EXPECT_EQ(files_in(folder.path), std::vector<std::string>{"old"});
}

TEST(SaveModel, AnErrorLeavesAllAsItWas) {
  const Folder folder;
  write_mixtral(folder.path / "old");
  const Model model(folder.path / "old");
  save_model(folder.path / "kept", model, {});
  const auto before = text_of(folder.path / "kept" / "model.safetensors");

  fs::create_directory(folder.path / "half");  // numbers of 16 bits, which cannot hold what the layer has
  write_text(folder.path / "half" / "config.json", text_of(folder.path / "old" / "config.json"));
  std::vector<Tensor> tensors;
  std::vector<std::vector<float16>> numbers;
  for (const std::string& name : model.tensors().names()) {
    const Tensor tensor = model.tensors().at(name);
    const auto values = as<float>(tensor);
    numbers.emplace_back(values.begin(), values.end());
    tensors.push_back(make_tensor(name, tensor.shape, std::span<const float16>(numbers.back())));
  }
  write_safetensors(folder.path / "half" / "model.safetensors", tensors);
  const Model half(folder.path / "half");
  auto layer = layer_of(1);
  save_model(folder.path / "kept16", half, {block_of(both[0], layer)});  // goes
  for (const auto& parameter : parameters(layer)) {
    if (parameter.name == "experts.2.up_proj.weight") parameter.data[0] = 1e6F;
  }
  EXPECT_EQ(
      error_of<Error>([&] { save_model(folder.path / "kept", half, {block_of(both[0], layer)}, {.overwrite = true}); }),
      "tensor \"" + both[0] + ".experts.2.w3.weight\": 1e+06 of experts.2.up_proj.weight is too large for F16");

  // What is written must be readable: a router that says NaN is not.
  auto diverged = layer_of(1);
  parameters(diverged)[0].array().setConstant(std::nanf(""));
  const std::string error = error_of<Error>(
      [&] { save_model(folder.path / "kept", model, {block_of(both[0], diverged)}, {.overwrite = true}); });
  EXPECT_NE(error.find("expected finite numbers"), std::string::npos) << error;
  EXPECT_EQ(error.find(".tmp"), std::string::npos) << error;

  EXPECT_NE(error_of<Error>([&] { save_model(folder.path / "old" / "config.json" / "in_a_file", model, {}); }),
            "no error");
  EXPECT_NE(
      error_of<Error>([&] { save_model(folder.path / "no" / "such" / "folder", model, {}); }).find("cannot be written"),
      std::string::npos);
  EXPECT_EQ(text_of(folder.path / "kept" / "model.safetensors"), before);
  EXPECT_EQ(files_in(folder.path), (std::vector<std::string>{"half", "kept", "kept16", "old"}));
}

TEST(SaveModel, NumbersThatJsonHasNotStayAsPythonWritesThem) {
  const Folder folder;
  write_mixtral(folder.path / "old", R"(, "z_limit": Infinity, "a_text": "Infinity", "low": [-Infinity, NaN])");
  const Model model(folder.path / "old");
  auto one = layer_of(1, experts, {.top_k = 1, .renormalize = true});
  save_model(folder.path / "new", model, {block_of(both[0], one), block_of(both[1], one)});
  const std::string text = text_of(folder.path / "new" / "config.json");
  for (const char* const part : {"\"z_limit\": Infinity", "\"a_text\": \"Infinity\"", "-Infinity,", "NaN\n"}) {
    EXPECT_NE(text.find(part), std::string::npos) << text;
  }
  EXPECT_LT(text.find("hidden_size"), text.find("a_text"));  // in the old order
}

// -------------------------------------------------------------------------------------------------------------
// upcycled

/// A dense model of two layers; its FFNs are returned.
std::vector<FfnBank<float, SwiGlu>> write_dense(const fs::path& folder, const std::string& model_type) {
  fs::create_directories(folder);
  write_text(folder / "config.json",
             R"({"model_type": ")" + model_type + R"(", "architectures": ["Dense"], "hidden_size": 6,
    "intermediate_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 9,
    "hidden_act": "silu", "rms_norm_eps": 1e-06, "max_position_embeddings": 64, "rope_theta": 10000.0, "head_dim": 3})");
  std::vector<FfnBank<float, SwiGlu>> ffns;
  std::vector<Tensor> tensors;
  for (unsigned i = 0; i < 2; ++i) ffns.push_back(random_bank<float>(1, d, 8, 40 + i));
  for (unsigned i = 0; i < 2; ++i) {
    const auto add = [&](const std::string& name, const auto& weight) {
      tensors.push_back(make_tensor("model.layers." + std::to_string(i) + ".mlp." + name + "_proj.weight",
                                    {weight.rows(), weight.cols()},
                                    std::span<const float>(weight.data(), std::size_t(weight.size()))));
    };
    add("gate", ffns[i].w_gate()[0]);
    add("up", ffns[i].w_up()[0]);
    add("down", ffns[i].w_down()[0]);
  }
  write_safetensors(folder / "model.safetensors", tensors);
  return ffns;
}

TEST(SaveUpcycled, ADenseModelBecomesASparseOne) {
  for (const auto& [type, dense_type, block] : {std::tuple("qwen3_moe", "qwen3", "mlp"),
                                                {"mixtral", "mistral", "block_sparse_moe"},
                                                {"mixtral", "llama", "block_sparse_moe"}}) {
    SCOPED_TRACE(dense_type);
    const Folder folder;
    const auto ffns = write_dense(folder.path / "dense", dense_type);
    auto first = upcycle(ffns[0], {.copies = 3, .active_copies = 1, .shards = 2, .seed = 4}),
         second = upcycle(ffns[1], {.copies = 3, .active_copies = 1, .shards = 2, .seed = 5});
    save_upcycled(folder.path / "sparse", folder.path / "dense", type,
                  {block_of("model.layers.0.mlp", first), block_of("model.layers.1.mlp", second)});
    const Model model(folder.path / "sparse");
    const std::string stem = "model.layers.";
    EXPECT_EQ(model.moe_blocks(), (std::vector<std::string>{stem + "0." + block, stem + "1." + block}));
    const Matrix<float> x = random_tokens<float>(d, 30, 5);
    EXPECT_EQ(model.layer(stem + "1." + block).layer.forward(x), second.forward(x));
    EXPECT_EQ(model.shape().num_experts, 6);
    EXPECT_EQ(model.shape().top_k, 2);
    EXPECT_EQ(model.shape().d_ff, 4);
  }
}

TEST(SaveUpcycled, SomeLayersMayStayDenseWhereTheModelAllowsIt) {
  const Folder folder;
  const auto ffns = write_dense(folder.path / "qwen3", "qwen3");
  write_dense(folder.path / "llama", "llama");
  auto layer = upcycle(ffns[1]);
  const std::vector<ModelBlock> one = {block_of("model.layers.1.mlp", layer)};
  save_upcycled(folder.path / "sparse", folder.path / "qwen3", "qwen3_moe", one);
  const auto config = nlohmann::json::parse(text_of(folder.path / "sparse" / "config.json"));
  EXPECT_EQ(config["mlp_only_layers"], nlohmann::json::array({0}));
  EXPECT_EQ(config["intermediate_size"], 8);
  EXPECT_EQ(config["architectures"], nlohmann::json::array({"Qwen3MoeForCausalLM"}));
  const Matrix<float> x = random_tokens<float>(d, 30, 5);
  const Model model(folder.path / "sparse");
  EXPECT_EQ(model.ffn("model.layers.0.mlp").forward(x), DenseLayer(ffns[0]).forward(x));

  DenseLayer other(random_bank<float>(1, d, 8, 60));  // FFNs go back, too
  save_model(folder.path / "other", model, {block_of("model.layers.0.mlp", other)});
  EXPECT_EQ(Model(folder.path / "other").ffn("model.layers.0.mlp").forward(x), other.forward(x));
  EXPECT_EQ(text_of(folder.path / "other" / "config.json"), text_of(folder.path / "sparse" / "config.json"));

  EXPECT_NE(error_of<Error>([&] {
              save_upcycled(folder.path / "no", folder.path / "llama", "mixtral", one);
            }).find("all layers of a \"mixtral\" are sparse"),
            std::string::npos);
  EXPECT_NE(error_of<Error>([&] {
              save_upcycled(folder.path / "no", folder.path / "llama", "qwen3_moe", one);
            }).find("expected one of qwen3_moe of qwen3, mixtral of mistral|llama"),
            std::string::npos);
  EXPECT_FALSE(fs::exists(folder.path / "no"));
}

}  // namespace
}  // namespace moe::io
