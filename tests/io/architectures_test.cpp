/// @file  Configurations and layouts of the models that checkpoint_test.cpp's family does not cover.
#include "moe/io/architectures.hpp"

#include <bit>
#include <cmath>
#include <cstdint>
#include <filesystem>
#include <limits>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "compare.hpp"
#include "load_layer.hpp"
#include "moe/models/presets.hpp"
#include "random.hpp"

namespace {

using namespace moe;
using namespace moe::io;
using nlohmann::json;

MoeShape shape_of(const char* text) { return moe_shape(Config(json::parse(text), "config.json")); }
TopKOptions top_k_of(const char* text) { return std::get<TopKOptions>(shape_of(text).router); }

std::string error_of(const char* text) {
  try {
    shape_of(text);
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

void expect_equal(const MoeShape& got, const MoeShape& expected) {
  EXPECT_EQ(got.d_model, expected.d_model);
  EXPECT_EQ(got.d_ff, expected.d_ff);
  EXPECT_EQ(got.num_experts, expected.num_experts);
  EXPECT_EQ(got.top_k, expected.top_k);
  EXPECT_EQ(got.d_ff_shared, expected.d_ff_shared);
  EXPECT_EQ(got.num_zero_experts, expected.num_zero_experts);
  EXPECT_EQ(got.expert_bias, expected.expert_bias);
  EXPECT_EQ(got.router_bias, expected.router_bias);
  EXPECT_EQ(got.selection_bias, expected.selection_bias);
  EXPECT_EQ(to_string(got.hidden), to_string(expected.hidden));
  ASSERT_EQ(got.router.index(), expected.router.index());
  if (const auto* const top_k = std::get_if<TopKOptions>(&got.router)) {
    const auto& other = std::get<TopKOptions>(expected.router);
    EXPECT_EQ(top_k->top_k, other.top_k);
    EXPECT_EQ(top_k->score, other.score);
    EXPECT_EQ(top_k->renormalize, other.renormalize);
    EXPECT_EQ(top_k->scale, other.scale);
  } else {
    EXPECT_EQ(std::get<SparseMixerOptions>(got.router).top_k, std::get<SparseMixerOptions>(expected.router).top_k);
    EXPECT_EQ(std::get<SparseMixerOptions>(got.router).jitter, std::get<SparseMixerOptions>(expected.router).jitter);
  }
}

TEST(Architectures, PublishedConfigsAreThePresetsOfTheirModels) {
  // clang-format off
  const std::vector<std::pair<const char*, const char*>> published = {
      {"gpt-oss-120b", R"({"model_type": "gpt_oss", "hidden_act": "silu", "hidden_size": 2880, "intermediate_size": 2880,
        "num_local_experts": 128, "num_experts_per_tok": 4, "experts_per_token": 4, "swiglu_limit": 7.0})"},
      {"gpt-oss-20b", R"({"model_type": "gpt_oss", "hidden_act": "silu", "hidden_size": 2880, "intermediate_size": 2880,
        "num_local_experts": 32, "num_experts_per_tok": 4, "experts_per_token": 4, "swiglu_limit": 7.0})"},
      {"phi-3.5-moe", R"({"model_type": "phimoe", "hidden_act": "silu", "hidden_size": 4096, "intermediate_size": 6400,
        "num_local_experts": 16, "num_experts_per_tok": 2, "router_jitter_noise": 0.01, "input_jitter_noise": 0.01})"},
      {"longcat-flash", R"({"model_type": "longcat_flash", "hidden_size": 6144, "ffn_hidden_size": 12288, "expert_ffn_hidden_size": 2048,
        "n_routed_experts": 512, "zero_expert_num": 256, "zero_expert_type": "identity", "moe_topk": 12, "routed_scaling_factor": 6.0})"},
  };
  // clang-format on
  for (const auto& [name, config] : published) {
    SCOPED_TRACE(name);
    expect_equal(shape_of(config), layer_shape(name));
  }
}

TEST(Architectures, DbrxReadsItsNestedConfig) {
  const char* const config = R"({"model_type": "dbrx", "d_model": 6144, "ffn_config": {"ffn_hidden_size": 10752,
    "moe_num_experts": 16, "moe_top_k": 4, "moe_normalize_expert_weights": 2.0}})";
  const MoeShape shape = shape_of(config);
  EXPECT_EQ(shape.d_model, 6144);
  EXPECT_EQ(shape.d_ff, 10752);
  EXPECT_EQ(shape.num_experts, 16);
  EXPECT_EQ(shape.top_k, 4);
  EXPECT_TRUE(top_k_of(config).renormalize);
  EXPECT_EQ(top_k_of(config).norm, 2);
  const TopKOptions none = top_k_of(R"({"model_type": "dbrx", "d_model": 6, "ffn_config": {"ffn_hidden_size": 10,
    "moe_num_experts": 16, "moe_top_k": 4, "moe_normalize_expert_weights": null}})");
  EXPECT_FALSE(none.renormalize);
  // What is absent is the class's default.
  const MoeShape usual = shape_of(R"({"model_type": "dbrx", "ffn_config": {"moe_num_experts": 16}})");
  EXPECT_EQ(usual.d_model, 2048);
  EXPECT_EQ(usual.num_experts, 16);
  EXPECT_EQ(usual.top_k, 1);
  EXPECT_EQ(top_k_of(R"({"model_type": "dbrx"})").norm, 1);
  EXPECT_TRUE(top_k_of(R"({"model_type": "dbrx"})").renormalize);
}

TEST(Architectures, ErnieRenormalisesDownToItsFloor) {
  const TopKOptions options =
      top_k_of(R"({"model_type": "ernie4_5_moe", "hidden_size": 2560, "moe_intermediate_size": 1536,
    "moe_num_experts": 64, "moe_k": 6, "moe_num_shared_experts": 2})");
  EXPECT_TRUE(options.renormalize);
  EXPECT_EQ(options.floor, 1e-12);
  EXPECT_EQ(options.score, Score::softmax);
}

TEST(Architectures, GraniteAndJetMoeTakeTheSoftmaxOfTheChosen) {
  for (
      const char* const config :
      {R"({"model_type": "granitemoe", "hidden_size": 8, "intermediate_size": 4, "num_local_experts": 5, "num_experts_per_tok": 2})",
       R"({"model_type": "granitemoeshared", "hidden_size": 8, "intermediate_size": 4, "num_local_experts": 5, "num_experts_per_tok": 2, "shared_intermediate_size": 3})",
       R"({"model_type": "jetmoe", "hidden_size": 8, "intermediate_size": 4, "num_local_experts": 5, "num_experts_per_tok": 2})"}) {
    EXPECT_EQ(top_k_of(config).score, Score::softmax_of_chosen);
  }
}

TEST(Architectures, SwitchTakesOneAndNllbTwoExperts) {
  EXPECT_EQ(top_k_of(R"({"model_type": "switch_transformers", "d_model": 8, "d_ff": 4, "num_experts": 5})").top_k, 1);
  const char* const nllb = R"({"model_type": "nllb-moe", "d_model": 8, "encoder_ffn_dim": 4, "num_experts": 5})";
  EXPECT_EQ(top_k_of(nllb).top_k, 2);
  EXPECT_EQ(to_string(shape_of(nllb).hidden), "relu");
  EXPECT_TRUE(shape_of(nllb).expert_bias);
}

TEST(Architectures, WhatIsNotComputedIsRefused) {
  EXPECT_EQ(error_of(R"({"model_type": "nllb-moe", "d_model": 8, "encoder_ffn_dim": 4, "num_experts": 5,
                         "second_expert_policy": "random"})"),
            "config.json: second_expert_policy is \"random\", expected \"all\"");
  EXPECT_EQ(error_of(R"({"model_type": "switch_transformers", "d_model": 8, "d_ff": 4, "num_experts": 5,
                         "dense_act_fn": "quick_gelu"})"),
            "config.json: dense_act_fn is \"quick_gelu\", expected \"silu\" or \"swish\" or \"gelu\" or "
            "\"gelu_pytorch_tanh\" or \"gelu_new\" or \"relu\" or \"relu2\"");
  EXPECT_EQ(error_of(R"({"model_type": "jetmoe", "hidden_size": 8, "intermediate_size": 4, "num_local_experts": 5,
                         "num_experts_per_tok": 2, "activation_function": "tanh"})"),
            "config.json: activation_function is \"tanh\", expected \"silu\" or \"swish\" or \"gelu\" or "
            "\"gelu_pytorch_tanh\" or \"gelu_new\" or \"relu\" or \"relu2\"");
  for (const std::string key : {"mlp_gate_softcap", "mlp_up_softcap"}) {
    const std::string config = R"({"model_type": "inkling2_text", ")" + key + R"(": 0.0})";
    EXPECT_EQ(error_of(config.c_str()), "config.json: " + key + " is 0, expected more than 0");
  }
}

TEST(Architectures, PhimoeTakesTwoExpertsWhateverItsConfigSays) {
  const MoeShape shape = shape_of(R"({"model_type": "phimoe", "num_experts_per_tok": 1})");
  EXPECT_EQ(shape.top_k, 2);
  EXPECT_EQ(std::get<SparseMixerOptions>(shape.router).top_k, 2);
}

/// Transformers' class gives the key to the shared expert alone.
TEST(Architectures, AriaSharesTheActivationThatItsConfigNames) {
  const MoeShape shape = shape_of(R"({"model_type": "aria_text", "hidden_act": "gelu"})");
  EXPECT_EQ(to_string(shape.hidden), to_string(HiddenActivation(AnyGatedActivation(SwiGlu{}))));
  EXPECT_EQ(to_string(shape.hidden_shared), to_string(HiddenActivation(AnyGatedActivation(GeGlu{}))));
}

// ---- errors that name the tensor
// --------------------------------------------------------------------------------------

class Damaged : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = std::filesystem::temp_directory_path() / ("moe_architectures_" + std::to_string(::getpid()));
    std::filesystem::create_directories(folder_);
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  /// The message when a copy of a reference case with other tensors is loaded.
  std::string message(const std::string& name, const std::vector<std::string>& left_out,
                      const std::vector<Tensor>& added) {
    const std::filesystem::path from = std::filesystem::path(MOE_SOURCE_DIR "/tests/golden") / name;
    std::filesystem::copy_file(from / "config.json", folder_ / "config.json",
                               std::filesystem::copy_options::overwrite_existing);
    const auto tensors = Tensors::open(from);
    std::vector<Tensor> kept = added;
    for (const std::string& one : tensors.names()) {
      if (std::ranges::count(left_out, one) == 0) kept.push_back(tensors.at(one));
    }
    write_safetensors(folder_ / "model.safetensors", kept);
    try {
      load_layer<float>(folder_, "");
    } catch (const Error& error) {
      return error.what();
    }
    return "no error";
  }

  std::filesystem::path folder_;
};

TEST_F(Damaged, LoadsWhenNothingIs) { EXPECT_EQ(message("gpt_oss_mxfp4", {}, {}), "no error"); }

TEST_F(Damaged, AMissingOrMisshapenTensorIsNamed) {
  const std::vector<std::pair<std::string, std::string>> needed = {
      {"gpt_oss_mxfp4", "experts.gate_up_proj_scales"},
      {"gpt_oss_mxfp4", "experts.down_proj_bias"},
      {"gpt_oss", "router.bias"},
      {"granitemoeshared", "shared_mlp.output_linear.weight"},
      {"dbrx", "experts.mlp.w2"},
      {"jetmoe", "bias"},
      {"ernie4_5_moe", "moe_statics.e_score_correction_bias"},
      {"longcat_flash", "router.e_score_correction_bias"},
      {"nllb_moe", "experts.expert_1.fc1.bias"},
      {"switch_transformers", "experts.expert_3.wo.weight"},
      {"phimoe", "experts.2.w3.weight"},
  };
  const std::vector<float> numbers(7);
  for (const auto& [name, tensor] : needed) {
    EXPECT_NE(message(name, {tensor}, {}).find("\"" + tensor + "\""), std::string::npos) << message(name, {tensor}, {});
    const auto misshapen = message(name, {tensor}, {make_tensor(tensor, {7}, std::span(numbers))});
    EXPECT_NE(misshapen.find("\"" + tensor + "\""), std::string::npos) << misshapen;
    EXPECT_TRUE(misshapen.find("[7]") != std::string::npos || misshapen.find("F32") != std::string::npos) << misshapen;
  }
}

}  // namespace
