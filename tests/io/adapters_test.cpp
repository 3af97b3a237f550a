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
       {"gate.lora_A.weight", "experts.1.gate_proj.lora_B.weight", "shared_expert.down_proj.lora_A.weight"}) {
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
  // Of two that fit, the file's first; of a parameter that was adapted as such, its own name.
  EXPECT_EQ(scale_for(R"({"peft_type": "LORA", "lora_alpha": 32, "alpha_pattern": {"up_proj": 4, "1.up_proj": 8}})"),
            1.0f);
  EXPECT_EQ(scale_for(R"({"peft_type": "LORA", "lora_alpha": 32, "alpha_pattern": {"1.up_proj": 8, "up_proj": 4}})"),
            2.0f);
  EXPECT_EQ(scale_for(R"({"peft_type": "LORA", "lora_alpha": 32, "target_parameters": ["1.up_proj.weight"],
                          "alpha_pattern": {"up_proj": 4, "up_proj.weight": 16}})"),
            4.0f);
  const auto error = [&](const std::string& config) { return test::error_of<Error>([&] { scale_for(config); }); };
  const std::string file = (folder.path / "adapter_config.json").string();
  EXPECT_EQ(error(R"({"peft_type": "LOHA"})"), file + ": peft_type is \"LOHA\", expected \"LORA\"");
  for (const auto& [setting, told] :
       {std::pair(R"("use_dora": true)", "use_dora is true, expected false"),
        {R"("lora_bias": true)", "lora_bias is true, expected false"},
        {R"("fan_in_fan_out": true)", "fan_in_fan_out is true, expected false"},
        {R"("use_qalora": true)", "use_qalora is true, expected false"},
        {R"("kasa_config": {"beta": 1})", "kasa_config is an object, expected null"},
        {R"("alora_invocation_tokens": [1])", "alora_invocation_tokens is an array"},
        {R"("layer_replication": [[0, 2]])", "layer_replication is an array"},
        {R"("of_next_year": 3)", "of_next_year is 3, expected null"},
        {R"("init_lora_weights": "pissa")", "init_lora_weights is \"pissa\", expected true"},
        {R"("init_lora_weights": "pissa_niter_4")", "init_lora_weights is \"pissa_niter_4\""},
        {R"("init_lora_weights": "olora")", "init_lora_weights is \"olora\""},
        {R"("init_lora_weights": "corda")", "init_lora_weights is \"corda\""},
        {R"("init_lora_weights": "loftq")", "init_lora_weights is \"loftq\""},
        {R"("init_lora_weights": "lora_ga")", "init_lora_weights is \"lora_ga\""}}) {
    const std::string what = error(std::string(R"({"peft_type": "LORA", "lora_alpha": 1, )") + setting + "}");
    EXPECT_EQ(what.find(file + ": " + told), 0u) << what;
  }
  EXPECT_EQ(
      scale_for(R"({"peft_type": "LORA", "r": 4, "lora_alpha": 4, "init_lora_weights": "gaussian", "use_dora": false,
                          "kasa_config": null, "loftq_config": {}, "modules_to_save": ["lm_head"], "bias": "none"})"),
      1.0f);
  EXPECT_EQ(error(R"({"peft_type": "LORA", "bias": "all"})"), file + ": bias is \"all\", expected \"none\"");
  EXPECT_EQ(error(R"({"peft_type": "LORA"})"), file + ": has no \"lora_alpha\"");
  EXPECT_NE(error(R"({"peft_type": "LORA", "lora_alpha": 1, "alpha_pattern": {"(": 1}})").find("no regular expression"),
            std::string::npos);
  std::string many;  // each within its bounds
  for (int i = 0; i < 100; ++i) many += (i > 0 ? ", \"" : "\"") + std::to_string(i) + "(a|bc){100}\": 1";
  EXPECT_NE(error(R"({"peft_type": "LORA", "lora_alpha": 1, "alpha_pattern": {)" + many + "}}")
                .find("alpha_pattern: its patterns have more than 20000 steps"),
            std::string::npos);
  EXPECT_NE(error(R"({"peft_type": "LORA", "lora_alpha": 1, "alpha_pattern": {"up_proj": "x"}})")
                .find("alpha_pattern: \"up_proj\" is \"x\", expected a number"),
            std::string::npos);
}

/// What is in the file is used, or refused by name.
TEST(AdoptAdapters, RefusesATensorThatNothingTakes) {
  const auto numbers = random_matrix<Weight<float>>(2, 6, 8);
  const std::string block = "base_model.model." + layer_name + ".";
  const auto error = [&](const std::vector<std::string>& more, const ReadAdaptersOptions& options = {}) {
    const Folder folder;
    auto saved = make_layer({1, 1, 1}, 4);
    save_adapters(folder.path, named_adapters(layer_name, saved));
    {
      const Tensors all = Tensors::open(folder.path / "adapter_model.safetensors");
      std::vector<Tensor> tensors;
      for (const std::string& name : all.names()) tensors.push_back(all.at(name));
      for (const std::string& name : more) {
        tensors.push_back(make_tensor(name, {2, 6}, std::span(numbers.data(), std::size_t(numbers.size()))));
      }
      write_safetensors(folder.path / "adapter_model.safetensors", tensors);
    }
    auto loaded = make_layer({1, 1, 1}, 40);
    const auto before = loaded;
    const std::string adopting =
        test::error_of<Error>([&] { adopt_adapters(folder.path, named_adapters(layer_name, loaded), options); });
    const std::string loading =
        test::error_of<Error>([&] { load_adapters(folder.path, named_adapters(layer_name, loaded), options); });
    EXPECT_EQ(loading.substr(loading.rfind('/') + 1), adopting.substr(adopting.rfind('/') + 1));
    if (adopting != "no error") {
      const auto x = random_matrix<Matrix<float>>(6, 40, 5);
      EXPECT_TRUE(same_bits(loaded.forward(x), before.forward(x))) << adopting;
    }
    return adopting.substr(adopting == "no error" ? 0 : adopting.find("tensor \""));
  };
  EXPECT_EQ(error({}), "no error");
  EXPECT_EQ(error({"base_model.model.model.layers.3.self_attn.q_proj.lora_A.weight", "base_model.model.lm_head.weight",
                   "base_model.model.model.layers.33.mlp.gate.lora_A.weight"}),
            "no error");
  for (const char* const name :
       {"experts.3.gate_proj.lora_A.weight", "experts.1.w1.lora_A.weight", "router.lora_A.weight",
        "gate.lora_magnitude_vector", "gate.weight", "shared_experts.up_proj.lora_B.weight"}) {
    EXPECT_EQ(error({block + name}),
              "tensor \"" + block + name +
                  "\" is of \"model.layers.3.mlp\", and none of its 13 "
                  "adapters, such as \"model.layers.3.mlp.gate\", takes it: it would be left out");
  }
  const std::string fused = block + "experts.base_layer.lora_A.weight";
  EXPECT_NE(error({fused}).find("adopt_fused_adapters() reads it, if read_elsewhere says so"), std::string::npos);
  EXPECT_EQ(error({fused}, {.read_elsewhere = {layer_name + ".experts"}}), "no error");
}

TEST(SaveAdapters, SavesWhatLearnsBesideThem) {
  const Folder folder;
  const auto make = [](unsigned seed) {
    WithSharedExpert layer(
        MoeLayer(with_lora(LinearTopK<float>(random_weight<float>(3, 6, 1), {.top_k = 2}), {.rank = 2}),
                 with_lora(random_bank<bfloat16>(3, 6, 5, 2), {.rank = 2})),
        with_lora(random_bank<float>(1, 6, 7, 3), {.rank = 2}), random_weight<float>(1, 6, 4));
    for (const auto& parameter : parameters(layer)) {
      parameter.matrix() = random_matrix<Weight<float>>(parameter.rows, parameter.cols, seed++);
    }
    return layer;
  };
  auto saved = make(1), loaded = make(50);
  save_adapters(folder.path, named_adapters(layer_name, saved));
  const nlohmann::json config = read_json(folder.path / "adapter_config.json");
  EXPECT_EQ(config["modules_to_save"], nlohmann::json::array({layer_name + ".shared_expert_gate"}));
  load_adapters(folder.path, named_adapters(layer_name, loaded));
  const auto x = random_matrix<Matrix<float>>(6, 40, 5);
  EXPECT_TRUE(same_bits(loaded.forward(x), saved.forward(x)));
}

/// Whatever is wrapped around them.
TEST(SaveAdapters, KnowsThoseOfJoinedGroups) {
  const Folder folder;
  const auto make = [](unsigned seed) {
    MoeLayer layer(with_lora(LinearTopK<float>(random_weight<float>(6, 6, 1), {.top_k = 2}), {.rank = 2}),
                   JoinedExperts(with_lora(random_bank<float>(3, 6, 5, 2)), with_lora(random_bank<float>(3, 6, 4, 3))));
    for (const auto& named : named_adapters(layer_name, layer)) {
      named.adapter->b = random_matrix<Weight<float>>(named.adapter->out(), named.adapter->rank(), ++seed);
    }
    return layer;
  };
  auto saved = make(10), loaded = make(50);
  save_adapters(folder.path, named_adapters(layer_name, saved));
  load_adapters(folder.path, named_adapters(layer_name, loaded));
  const auto x = random_matrix<Matrix<float>>(6, 40, 5);
  EXPECT_TRUE(same_bits(loaded.forward(x), saved.forward(x)));
}

/// Whoever knows where parameters lie, such as an optimiser, may go on after a load.
TEST(LoadAdapters, LeavesNumbersWhereTheyLie) {
  const Folder folder;
  auto saved = make_layer({1, 1, 2}, 4), going_on = saved, loaded = make_layer({1, 1, 2}, 40);
  save_adapters(folder.path, named_adapters(layer_name, saved));
  AdamW<float> adam(parameters(going_on)), adam_of_loaded(parameters(loaded));
  const auto before = parameters(loaded);
  load_adapters(folder.path, named_adapters(layer_name, loaded));
  adopt_adapters(folder.path, named_adapters(layer_name, loaded));  // of the same ranks
  const auto after = parameters(loaded);
  ASSERT_EQ(after.size(), before.size());
  for (std::size_t p = 0; p < after.size(); ++p) EXPECT_EQ(after[p].data, before[p].data) << after[p].name;
  auto gradient = saved;  // any numbers
  adam.step(parameters(gradient));
  adam_of_loaded.step(parameters(gradient));
  const auto x = random_matrix<Matrix<float>>(6, 40, 5);
  EXPECT_TRUE(same_bits(loaded.forward(x), going_on.forward(x)));
}

TEST(AdoptAdapters, OfOtherRanksAreWhatATrainableLayerThenLearns) {
  const Folder folder;
  auto saved = make_layer({1, 0, 2}, 4);
  save_adapters(folder.path, named_adapters(layer_name, saved));
  TrainableLayer<float> layer(make_layer({3, 1, 0}, 40, 1));
  adopt_adapters(folder.path, layer.named_adapters(layer_name));
  const auto expected = parameters(saved);
  ASSERT_EQ(layer.parameters().size(), expected.size());
  ASSERT_EQ(layer.gradients().size(), expected.size());
  for (std::size_t p = 0; p < expected.size(); ++p) {
    EXPECT_EQ(layer.parameters()[p].name, expected[p].name);
    EXPECT_TRUE(same_bits(layer.parameters()[p].matrix(), expected[p].matrix())) << expected[p].name;
    EXPECT_EQ(layer.gradients()[p].size(), expected[p].size()) << expected[p].name;
  }
  AdamW<float> adam(layer.parameters(), {.learning_rate = 0.01});
  const auto x = random_matrix<Matrix<float>>(6, 40, 5);
  Matrix<float> y(6, 40), d_x = Matrix<float>::Zero(6, 40);
  float first = 0, last = 0;
  for (int step = 0; step < 20; ++step) {
    layer.forward(x, y);
    last = (y - x).squaredNorm();
    if (step == 0) first = last;
    set_to_zero(layer.gradients());
    layer.backward(x, y - x, d_x);
    adam.step(layer.gradients());
  }
  EXPECT_LT(last, first);
}

TEST(NamedAdapters, SeeThroughFiltersAndOutputs) {
  AffineOutput layer(MoeLayer(Replay(WithSecondExpert(with_lora(LinearTopK<float>(random_weight<float>(3, 6, 1),
                                                                                  {.top_k = 2, .renormalize = true}),
                                                                {.rank = 2}),
                                                      {.keep = KeepSecond::always})),
                              with_lora(random_bank<float>(3, 6, 5, 2))),
                     2.0F);
  EXPECT_EQ(named_adapters(layer_name, layer).size(), 10u);
  for (const auto& parameter : parameters(layer)) {
    parameter.matrix() = random_matrix<Weight<float>>(parameter.rows, parameter.cols, 7);
  }
  auto plain = merged(layer);
  for (const auto& parameter : all_parameters(plain)) EXPECT_EQ(parameter.name.find("lora_"), std::string::npos);
  const auto x = random_matrix<Matrix<float>>(6, 40, 5);
  EXPECT_TRUE(test::is_close(plain.forward(x), layer.forward(x)));
}

}  // namespace
}  // namespace moe::io
