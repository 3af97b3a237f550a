/// @file  Adapters as PEFT writes them, with what PEFT computed: the folders in tests/real_adapters, and those below
/// the
///        folder that MOE_ADAPTERS_DIR names. tests/real_adapters/README.md says what is recorded.
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "errors.hpp"
#include "learning_layers.hpp"
#include "moe/io/adapters.hpp"
#include "moe/io/model_adapters.hpp"
#include "moe/io/safetensors_file.hpp"
#include "moe/io/save_gguf.hpp"
#include "moe/moe.hpp"
#include "moe/train.hpp"
#include "random.hpp"
#include "recorded_folders.hpp"
#include "temporary_folder.hpp"

namespace moe::io {
namespace {

namespace fs = std::filesystem;

struct Case {
  explicit Case(const fs::path& its_folder)
      : folder(its_folder),
        about(nlohmann::json::parse(std::ifstream(folder / "case.json"))),
        records(Tensors::open(folder / "expected.safetensors")) {}

  std::string expect() const { return about.at("expect"); }
  Index num_layers() const { return about.at("layers"); }

  std::string block(Index layer) const {
    std::string name = about.at("block_in_base");
    return name.replace(name.find('#'), 1, std::to_string(layer));
  }

  /// One after the other, in the order in which they were made active.
  std::vector<fs::path> adapters() const {
    std::vector<fs::path> all{folder / "adapter"};
    if (about.contains("also")) all.push_back(folder / std::string(about["also"]));
    return all;
  }

  /// Tokens are rows there.
  Matrix<float> record(Index layer, const std::string& what) const {
    return records.read<float>("layers." + std::to_string(layer) + ".adapted." + what).transpose();
  }

  fs::path folder;
  nlohmann::json about;
  Tensors records;
};

/// Sums over experts, in another order: |a − b| ≤ 1e-5 max|b|.
void expect_close(const Matrix<float>& got, const Matrix<float>& recorded, const std::string& what) {
  ASSERT_EQ(got.rows(), recorded.rows()) << what;
  ASSERT_EQ(got.cols(), recorded.cols()) << what;
  const float off = (got - recorded).cwiseAbs().maxCoeff(), largest = recorded.cwiseAbs().maxCoeff();
  EXPECT_LE(off, 1e-5F * largest) << what;
}

class RealAdapters : public testing::TestWithParam<test::RecordedFolder> {};

TEST_P(RealAdapters, GiveWhatPeftGivesOrAreRefused) {
  ASSERT_TRUE(fs::exists(GetParam().path / "case.json"))
      << GetParam().path << " is no folder with adapters and their records";
  const Case its(GetParam().path);
  const Model model(its.folder / "base");
  std::vector<TrainableLayer<float>> layers;
  std::vector<NamedAdapter<float>> all;
  for (Index i = 0; i < its.num_layers(); ++i) {
    SCOPED_TRACE(its.block(i));
    if (its.expect().find("refuse") != std::string::npos) {  // or "load or refuse"
      const std::string what = test::error_of<Error>([&] { load_lora_layer(model, its.block(i), its.adapters()); });
      const bool is_refused = what.find((its.folder / "adapter").string()) != what.npos;
      EXPECT_TRUE(is_refused || (what == "no error" && its.expect() != "refuse")) << what;
      if (is_refused) continue;
    }
    const Adapters adapters(its.adapters());
    EXPECT_EQ(adapters.adapt(model, its.block(i)), its.expect() != "nothing here");
    auto layer = load_lora_layer(model, its.block(i), adapters);
    const Matrix<float> x = its.record(i, "input");
    const Matrix<float> expected = its.record(i, its.expect() == "load as trained" ? "output_as_trained" : "output");
    Matrix<float> y(x.rows(), x.cols()), d_x = Matrix<float>::Zero(x.rows(), x.cols());
    layer.forward(x, y);
    expect_close(y, expected, "output");
    expect_close(merged(layer).forward(x), expected, "output of the merged layer");

    if (its.expect() != "nothing here") {
      for (const bool for_peft : {true, false}) {  // under the names of the model in transformers, or ours
        const test::TemporaryFolder folder("real_adapters");
        const auto named = layer.named_adapters(its.block(i));
        for_peft ? save_adapters(folder.path, model, named) : save_adapters(folder.path, named);
        auto read = load_lora_layer(model, its.block(i), folder.path);
        read.forward(x, y);
        expect_close(y, expected, for_peft ? "output of what was saved for PEFT" : "output of what was saved");
      }
    }

    layer.forward(x, y);
    layer.backward(x, y, d_x);
    EXPECT_TRUE(d_x.array().isFinite().all());
    bool learns = its.expect() == "nothing here";
    for (const auto& gradient : layer.gradients()) learns = learns || gradient.array().abs().maxCoeff() > 0;
    EXPECT_TRUE(learns);
    for (const auto& named : layer.named_adapters(its.block(i))) all.push_back(named);
    layers.push_back(std::move(layer));
  }
  // For tests/peft_reads_ours.py.
  if (const char* const to = std::getenv("MOE_WRITE_ADAPTERS_TO");
      to != nullptr && !layers.empty() && its.expect() != "nothing here") {
    const fs::path folder = fs::path(to) / GetParam().path.filename();
    fs::create_directories(folder);
    save_adapters(folder, model, all);
  }
}

/// Of these kinds no adapters of PEFT's were recorded: what we write, we read, under the model's names and ours.
TEST(LoadLoraLayer, ReadsWhatWasWrittenOfEveryKindOfLayer) {
  for (const char* const name : {"nemotron_h",       "nemotron_h_latent",
                                 "laguna_softcap",   "granitemoeshared",
                                 "hunyuan_v1_moe",   "jetmoe",
                                 "step3p5",          "minimax_m3_vl_text",
                                 "deepseek_v3_bf16", "ernie4_5_moe_bias",
                                 "aria_text",        "hy_v3",
                                 "gemma4_text",      "phimoe",
                                 "longcat_flash",    "switch_transformers",
                                 "nllb_moe",         "zaya",
                                 "muse_spark_text",  "axk1",
                                 "ernie4_5_vl_moe"}) {
    SCOPED_TRACE(name);
    const fs::path base = fs::path(MOE_SOURCE_DIR) / "tests/real" / name;
    const Model model(base);
    const std::string block = model.moe_blocks().at(0);
    const RouterKind kind = model.architecture().router_kind;
    const bool takes_router = kind != RouterKind::normed && kind != RouterKind::carried;
    auto layer = load_lora_layer(
        model, block, {.router = {.rank = takes_router ? 2 : 0}, .experts = {.rank = 2}, .shared = {.rank = 3}});
    const auto records = Tensors::open(base / "blocks.safetensors");
    const Matrix<float> x = records.read<float>(block + ".input").transpose();
    Matrix<float> before(x.rows(), x.cols()), expected = before, y = before;
    layer.forward(x, before);  // what was recorded is held to by learning_folders_test
    EXPECT_EQ(before, model.layer(block).layer.forward(x));

    unsigned seed = 1;
    for (const auto& named : layer.named_adapters(block)) {
      named.adapter->b = test::random_matrix<Weight<float>>(named.adapter->out(), named.adapter->rank(), seed++);
    }
    layer.forward(x, expected);
    EXPECT_GT((expected - before).norm(), 1e-2F * before.norm());
    for (const bool for_peft : {true, false}) {
      const test::TemporaryFolder folder("written_adapters");
      const auto named = layer.named_adapters(block);
      for_peft ? save_adapters(folder.path, model, named) : save_adapters(folder.path, named);
      auto read = load_lora_layer(model, block, folder.path);
      read.forward(x, y);
      expect_close(y, expected, for_peft ? "saved for PEFT" : "saved");
    }
    Matrix<float> d_x = Matrix<float>::Zero(x.rows(), x.cols());
    layer.forward(x, y);
    layer.backward(x, y, d_x);
    EXPECT_TRUE(d_x.array().isFinite().all());
  }
}

const fs::path cases = fs::path(MOE_SOURCE_DIR) / "tests/real_adapters";

TEST(Adapters, TellWhatIsOfNoBlock) {
  const Case its(cases / "mixtral_all_linear");
  const auto others = Adapters(its.folder / "adapter").beside_blocks(Model(its.folder / "base"));
  EXPECT_EQ(others.size(), 8U);
  for (const std::string& name : others) EXPECT_NE(name.find(".self_attn."), name.npos) << name;
}

/// They were trained beside transformers' modules, and find their places in a GGUF file of the same model.
TEST(Adapters, OfPeftGiveTheSameBesideAGgufFile) {
  for (const char* const name : {"qwen3_moe_v4_rslora", "mixtral_all_linear", "deepseek_v3_shared_and_experts",
                                 "qwen2_moe_shared_and_gate", "gpt_oss_experts_and_router"}) {
    const Case its(cases / name);
    const Model model(its.folder / "base");
    const test::TemporaryFolder temporary("adapters_beside_gguf");
    const fs::path file = temporary.path / "model.gguf";
    std::vector<Tensor> tensors;
    for (const std::string& block : model.moe_blocks())
      std::ranges::move(gguf_tensors(model, block), std::back_inserter(tensors));
    save_gguf(file, model, tensors);
    const Model gguf(file);
    const Adapters adapters(its.adapters());
    fs::create_directories(temporary.path / "ours");
    for (Index i = 0; i < its.num_layers(); ++i) {
      const std::string block = gguf.moe_blocks()[std::size_t(i)];
      SCOPED_TRACE(std::string(name) + ": " + block);
      EXPECT_TRUE(adapters.adapt(gguf, block));
      auto layer = load_lora_layer(gguf, block, adapters);
      const Matrix<float> x = its.record(i, "input");
      const Matrix<float> expected = its.record(i, its.expect() == "load as trained" ? "output_as_trained" : "output");
      Matrix<float> y(x.rows(), x.cols());
      layer.forward(x, y);
      expect_close(y, expected, "output");
      const auto named = layer.named_adapters(block);
      save_adapters(temporary.path / "ours", named);
      auto again = load_lora_layer(gguf, block, temporary.path / "ours");
      again.forward(x, y);
      expect_close(y, expected, "output of what was saved");
      EXPECT_EQ(test::error_of<Error>([&] { save_adapters(temporary.path / "peft", gguf, named); }),
                file.string() +
                    ": is a GGUF file, whose modules PEFT does not know: save_adapters(folder, adapters) writes "
                    "them as load_lora_layer() reads them beside this file");
    }
  }
}

/// A copy of a case's adapter, to be changed.
struct Copy : test::TemporaryFolder {
  explicit Copy(const std::string& name)
      : TemporaryFolder("copy_of_adapters"), its(cases / name), model(its.folder / "base") {
    for (const char* const file : {"adapter_config.json", "adapter_model.safetensors"}) {
      fs::copy_file(its.folder / "adapter" / file, path / file, fs::copy_options::overwrite_existing);
    }
  }

  void add(const std::string& name, const std::vector<Index>& shape, float number = 1) const {
    const std::vector<float> numbers(std::size_t(shape[0] * shape[1]), number);
    const Tensors all = Tensors::open(path / "adapter_model.safetensors");
    std::vector<Tensor> tensors{make_tensor(name, shape, std::span<const float>(numbers))};
    for (const std::string& one : all.names()) tensors.push_back(all.at(one));
    write_safetensors(path / "adapter_model.safetensors", tensors);
  }

  void say(const std::string& key, const nlohmann::json& value) const {
    auto config = nlohmann::json::parse(std::ifstream(path / "adapter_config.json"));
    config[key] = value;
    std::ofstream(path / "adapter_config.json") << config;
  }

  std::string error() const {
    return test::error_of<Error>([&] { load_lora_layer(model, its.block(0), path); });
  }

  Case its;
  Model model;
};

TEST(LoadLoraLayer, RefusesByNameWhatNothingTakes) {
  const std::string block = "base_model.model.model.layers.0.mlp.";
  for (const char* const name :
       {"gate.lora_magnitude_vector", "experts.6.up_proj.lora_A.weight", "experts.0.w1.bias", "router.lora_B.weight",
        "experts.base_layer.base_layer.lora_A.weight", "experts.gate_up_proj", "gate.e_score_correction_bias"}) {
    const Copy copy("qwen3_moe_patterns_in_own_order");
    copy.add(block + name, {2, 32});
    EXPECT_EQ(copy.error(),
              (copy.path / "adapter_model.safetensors").string() + ": tensor \"" + block + name +
                  "\" is of the block \"model.layers.0.mlp\", and no part of it takes it: to leave it out "
                  "would change what the layer computes");
  }
  const Copy copy("qwen3_moe_patterns_in_own_order");
  copy.add("base_model.model.model.layers.1.mlp.nothing.lora_A.weight", {2, 32});  // of another layer
  EXPECT_EQ(copy.error(), "no error");
}

TEST(LoadLoraLayer, RefusesWhatCannotBeKnown) {
  const auto has = [](const std::string& error, const std::string& what) { return error.find(what) != error.npos; };
  {
    const Copy square("qwen3_moe_down_square_only");
    square.say("peft_version", "0.18.1");
    EXPECT_TRUE(has(square.error(), "is square, and of a PEFT before 0.19.1")) << square.error();
  }
  {
    const Copy dropout("qwen3_moe_down_square_only");
    dropout.say("lora_dropout", 1.0);
    EXPECT_TRUE(has(dropout.error(), "lora_dropout is 1, expected at least 0 and below 1")) << dropout.error();
  }
  {
    const Copy half("qwen3_moe_patterns_in_own_order");
    half.add("base_model.model.model.layers.0.mlp.experts.0.down_proj.lora_A.weight", {1, 24});
    EXPECT_TRUE(
        has(half.error(), "no tensor \"base_model.model.model.layers.0.mlp.experts.0.down_proj.lora_B.weight\""))
        << half.error();
  }
  {
    const Copy diverged("qwen3_moe_attention_only");
    for (const char* const factor : {"lora_A", "lora_B"}) {
      const bool is_a = factor == std::string("lora_A");
      diverged.add(std::string("base_model.model.model.layers.0.mlp.gate.") + factor + ".weight",
                   is_a ? std::vector<Index>{1, 32} : std::vector<Index>{6, 1}, std::nanf(""));
    }
    EXPECT_TRUE(has(diverged.error(), "gate.lora_A.weight\" holds a number that is not finite")) << diverged.error();
  }
  const Copy whole("qwen3_moe_modules_to_save_gate");
  const std::vector<fs::path> twice(2, whole.path);
  const std::string error = test::error_of<Error>([&] { load_lora_layer(whole.model, whole.its.block(0), twice); });
  EXPECT_TRUE(has(error, "has the router's weight in full, and so has a folder before it")) << error;
}

INSTANTIATE_TEST_SUITE_P(Folders, RealAdapters,
                         testing::ValuesIn(test::recorded_folders(fs::path(MOE_SOURCE_DIR) / "tests/real_adapters",
                                                                  "MOE_ADAPTERS_DIR", "case.json")),
                         test::name_of);

}  // namespace
}  // namespace moe::io
