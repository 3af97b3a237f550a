// Adapters in the files of PEFT.
#include "moe/io/adapters.hpp"

#include <filesystem>
#include <fstream>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "compare.hpp"
#include "errors.hpp"
#include "moe/moe.hpp"
#include "moe/train.hpp"
#include "random.hpp"
#include "temporary_folder.hpp"

namespace moe::io {
namespace {

namespace fs = std::filesystem;
using test::random_matrix;
using test::same_bits;

struct Folder : test::TemporaryFolder {
  Folder() : TemporaryFolder("adapters") {}
};

const std::string layer_name = "model.layers.3.mlp";

auto make_layer(const std::vector<Index>& ranks, unsigned seed, Index router_rank = 2) {
  WithSharedExpert layer(
      MoeLayer(with_lora(LinearTopK<float>(random_weight<float>(3, 6, 1), {.top_k = 2}), {.rank = router_rank}),
               with_lora(random_bank<bfloat16>(3, 6, 5, 2), {.expert_ranks = ranks, .alpha = 12})),
      with_lora(random_bank<float>(1, 6, 7, 3), {.rank = 2, .alpha = 12, .gate = false, .up = false}));
  for (const auto& parameter : parameters(layer)) {
    parameter.matrix() = random_matrix<Weight<float>>(parameter.rows, parameter.cols, seed++);
  }
  return layer;
}

TEST(SaveAdapters, UsesTheNamesOfPeft) {
  const Folder folder;
  auto layer = make_layer({0, 1, 2}, 4);
  save_adapters(folder.path, named_adapters(layer_name, layer), {.dropout = 0.1, .base_model = "some/model"});

  const Tensors tensors = Tensors::open(folder.path / "adapter_model.safetensors");
  const std::vector<std::string> names = tensors.names();
  EXPECT_EQ(names.size(), 2u * (1 + 3 + 3 + 1));
  const std::string prefix = "base_model.model.model.layers.3.mlp.";
  for (const char* const name :
       {"gate.lora_A.weight", "experts.1.gate_proj.lora_B.weight", "shared_expert.0.down_proj.lora_A.weight"}) {
    EXPECT_TRUE(tensors.contains(prefix + name)) << name;
  }
  EXPECT_EQ(tensors.at(prefix + "experts.2.down_proj.lora_B.weight").shape, (std::vector<Index>{6, 2}));

  const nlohmann::json config = read_json(folder.path / "adapter_config.json");
  EXPECT_EQ(config["peft_type"], "LORA");
  EXPECT_EQ(config["base_model_name_or_path"], "some/model");
  EXPECT_EQ(config["lora_dropout"], 0.1);
  EXPECT_EQ(config["target_modules"].size(), 8u);
  EXPECT_EQ(config["r"], 2);
  EXPECT_EQ(config["lora_alpha"], 16);
  EXPECT_EQ(config["rank_pattern"][layer_name + ".experts.1.up_proj"], 1);
  EXPECT_EQ(config["rank_pattern"].size(), 3u);
  EXPECT_EQ(config["alpha_pattern"][layer_name + ".experts.2.up_proj"], 12);
}

TEST(LoadAdapters, GivesBackTheSameLayer) {
  const Folder folder;
  auto saved = make_layer({0, 1, 2}, 4), loaded = make_layer({0, 1, 2}, 40), adopted = make_layer({0, 0, 0}, 40, 0);
  save_adapters(folder.path, named_adapters(layer_name, saved));
  load_adapters(folder.path, named_adapters(layer_name, loaded));
  adopt_adapters(folder.path, named_adapters(layer_name, adopted));
  const auto x = random_matrix<Matrix<float>>(6, 40, 5);
  EXPECT_TRUE(same_bits(loaded.forward(x), saved.forward(x)));
  EXPECT_TRUE(same_bits(adopted.forward(x), saved.forward(x)));
}

TEST(LoadAdapters, RefusesWhatDoesNotFitAndChangesNothing) {
  const Folder folder;
  auto saved = make_layer({0, 1, 2}, 4);
  save_adapters(folder.path, named_adapters(layer_name, saved));
  const auto error = [&](const std::vector<Index>& ranks, const std::string& name) {
    auto other = make_layer(ranks, 40);
    const auto before = other;
    const std::string what = test::error_of<Error>([&] { load_adapters(folder.path, named_adapters(name, other)); });
    const auto x = random_matrix<Matrix<float>>(6, 40, 5);
    EXPECT_TRUE(same_bits(other.forward(x), before.forward(x))) << what;
    return what;
  };
  const std::string shape = error({0, 1, 3}, layer_name);
  EXPECT_NE(shape.find("adapter_model.safetensors: tensor "
                       "\"base_model.model.model.layers.3.mlp.experts.2.gate_proj.lora_A.weight\" has shape [2, 6], "
                       "expected [3, 6]"),
            shape.npos)
      << shape;
  const std::string unexpected = error({0, 0, 2}, layer_name);
  EXPECT_NE(unexpected.find("\"model.layers.3.mlp.experts.1.gate_proj\" has an adapter of shape [1, 6], expected none"),
            unexpected.npos)
      << unexpected;
  const std::string missing = error({1, 1, 2}, layer_name);
  EXPECT_NE(missing.find("no tensor \"base_model.model.model.layers.3.mlp.experts.0.gate_proj.lora_A.weight\""),
            missing.npos)
      << missing;

  auto other = make_layer({0, 0, 0}, 40, 0);
  const std::string none =
      test::error_of<Error>([&] { adopt_adapters(folder.path, named_adapters("model.layers.4.mlp", other)); });
  EXPECT_NE(none.find("has none of 13 adapters, such as \"model.layers.4.mlp.gate\""), none.npos) << none;
  auto empty = MoeLayer(with_lora(LinearTopK<float>(random_weight<float>(3, 6, 1), {}), {.rank = 0}),
                        random_bank<float>(3, 6, 5, 1));
  const std::string nothing =
      test::error_of<Error>([&] { save_adapters(folder.path, named_adapters(layer_name, empty)); });
  EXPECT_NE(nothing.find("no adapter of a rank above 0"), nothing.npos) << nothing;
}

/// A file as PEFT would have written it: 16 bits, patterns, and adapters of other parts of the model.
TEST(AdoptAdapters, ReadsPatternsAndNarrowNumbers) {
  const Folder folder;
  const auto a = random_matrix<Weight<bfloat16>>(4, 6, 6), b = random_matrix<Weight<bfloat16>>(5, 4, 7);
  const auto other = random_matrix<Weight<float>>(2, 6, 8);
  const std::string prefix = "base_model.model.model.layers.3.mlp.experts.";
  const auto tensor = [](const std::string& name, const auto& m) {
    return make_tensor(name, {m.rows(), m.cols()}, std::span(m.data(), std::size_t(m.size())));
  };
  write_safetensors(folder.path / "adapter_model.safetensors",
                    {tensor(prefix + "1.up_proj.lora_A.weight", a), tensor(prefix + "1.up_proj.lora_B.weight", b),
                     tensor("base_model.model.model.layers.3.self_attn.q_proj.lora_A.weight", other)});
  const auto scale_for = [&](const std::string& config) {
    std::ofstream(folder.path / "adapter_config.json") << config;
    MoeLayer layer(LinearTopK<float>(random_weight<float>(3, 6, 1), {.top_k = 2}),
                   with_lora(random_bank<bfloat16>(3, 6, 5, 2), {.rank = 0}));
    adopt_adapters(folder.path, named_adapters(layer_name, layer));
    const auto& adapters = layer.experts().adapters();
    EXPECT_EQ(adapters[1].gate.rank() + adapters[1].down.rank() + adapters[0].up.rank(), 0);
    EXPECT_TRUE(same_bits(adapters[1].up.a, a.cast<float>().eval()));
    EXPECT_TRUE(same_bits(adapters[1].up.b, b.cast<float>().eval()));
    return adapters[1].up.scale();
  };
  EXPECT_EQ(scale_for(R"({"peft_type": "LORA", "r": 8, "lora_alpha": 32, "rank_pattern": {"1.up_proj": 4}})"), 8.0f);
  EXPECT_EQ(scale_for(R"({"peft_type": "LORA", "r": 8, "lora_alpha": 32, "use_rslora": true})"), 16.0f);
  EXPECT_EQ(scale_for(R"({"peft_type": "LORA", "r": 8, "lora_alpha": 32, "alpha_pattern": {"up_proj": 2}})"), 0.5f);
  EXPECT_EQ(scale_for(R"({"peft_type": "LORA", "r": 8, "lora_alpha": 32, "alpha_pattern": {"p_proj": 2}})"), 8.0f);
  EXPECT_EQ(scale_for(R"({"peft_type": "LORA", "r": 8, "lora_alpha": 32,
                          "alpha_pattern": {"layers\\.[0-3]\\..*\\.[13]\\.up_proj": 4}})"),
            1.0f);
  const auto error = [&](const std::string& config) { return test::error_of<Error>([&] { scale_for(config); }); };
  const std::string file = (folder.path / "adapter_config.json").string();
  EXPECT_EQ(error(R"({"peft_type": "LOHA"})"), file + ": peft_type is \"LOHA\", expected \"LORA\"");
  EXPECT_EQ(error(R"({"peft_type": "LORA", "use_dora": true})"), file + ": use_dora is true, expected false");
  EXPECT_EQ(error(R"({"peft_type": "LORA", "bias": "all"})"), file + ": bias is \"all\", expected \"none\"");
  EXPECT_EQ(error(R"({"peft_type": "LORA"})"), file + ": has no \"lora_alpha\"");
  EXPECT_NE(error(R"({"peft_type": "LORA", "lora_alpha": 1, "alpha_pattern": {"(": 1}})").find("no regular expression"),
            std::string::npos);
  EXPECT_NE(error(R"({"peft_type": "LORA", "lora_alpha": 1, "alpha_pattern": {"up_proj": "x"}})")
                .find("alpha_pattern: \"up_proj\" is \"x\", expected a number"),
            std::string::npos);
}

}  // namespace
}  // namespace moe::io
