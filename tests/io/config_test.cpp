/// @file  Settings that say something, names that are suggested, and where long messages end.
#include "moe/io/config.hpp"

#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "errors.hpp"
#include "moe/io/architectures.hpp"
#include "moe/io/error.hpp"

namespace {

using namespace moe;
using namespace moe::io;
using nlohmann::json;

/// What is said of a block with these settings beside its own.
std::string error_of_block(const char* model_type, const json& settings) {
  json all = settings;
  all["model_type"] = model_type;
  const Config config(std::move(all), "config.json");
  return test::error_of<Error>([&] {
    const Architecture& architecture = architecture_of(config);
    moe_shape(config, architecture);
    io::detail::require_no_other_settings(config, architecture);
  });
}

TEST(Settings, OfValue1AreRefusedWhereNothingReadsThem) {
  for (const auto& [key, value] : std::vector<std::pair<std::string, json>>{{"swiglu_limit", 1.0},
                                                                            {"swiglu_alpha", 1.0},
                                                                            {"mlp_gate_softcap", 1.0},
                                                                            {"moe_router_logit_softcapping", 1},
                                                                            {"moe_norm_min", 1.0},
                                                                            {"moe_latent_size", 1},
                                                                            {"n_shared_experts", 1},
                                                                            {"num_shared_experts", 1},
                                                                            {"moe_num_shared_experts", 1},
                                                                            {"shared_expert_intermediate_size", 1},
                                                                            {"zero_expert_num", 1},
                                                                            {"use_bias", 1}}) {
    EXPECT_EQ(
        error_of_block("qwen3_moe", {{key, value}}),
        "config.json: has \"" + key +
            "\", which changes what MoE blocks compute, and model_type \"qwen3_moe\" has nothing here that reads it");
  }
}

TEST(Settings, ThatAre1AsIfNothingWereSaidArePassedOver) {
  const json factors_and_groups = {{"routed_scaling_factor", 1.0},
                                   {"route_scale", 1},
                                   {"output_multiplier", 1.0},
                                   {"n_group", 1},
                                   {"topk_group", 1},
                                   {"num_expert_group", 1},
                                   {"moe_layer_freq", 1},
                                   {"swiglu_limit", 0.0},
                                   {"n_shared_experts", 0},
                                   {"use_bias", false},
                                   {"moe_norm_min", nullptr}};
  EXPECT_EQ(error_of_block("qwen3_moe", factors_and_groups), "no error");
  for (const char* const key : {"routed_scaling_factor", "route_scale", "n_group"}) {
    EXPECT_NE(error_of_block("qwen3_moe", {{key, 2}}), "no error") << key;
  }
  EXPECT_NE(error_of_block("qwen3_moe", {{"routed_scaling_factor", 0.0}}), "no error");  // all experts would be silent
}

/// In files of DeepSeek-V4 and Nemotron the number is 1, and another key says how wide that one is.
TEST(Settings, SayOneSharedExpertWhereTheModelTypeHasOne) {
  for (const char* const type : {"deepseek_v4", "nemotron_h", "minimax_m3_vl_text", "step3p5", "qwen2_moe"}) {
    EXPECT_EQ(error_of_block(type, {{"n_shared_experts", 1}}), "no error") << type;
    EXPECT_EQ(error_of_block(type, {{"n_shared_experts", 2}}),
              "config.json: n_shared_experts is 2, expected 1: model_type \"" + std::string(type) +
                  "\" has one shared expert, whose width another key says");
  }
}

TEST(Settings, ThatNobodyReadsAreListedWhateverTheirNumber) {
  const Config config({{"swiglu_limit", 1.0}, {"new_limit", 1}, {"n_group", 1}, {"none", 0}, {"hidden_size", 8}}, "x");
  config.integer("hidden_size");
  EXPECT_EQ(config.unread(), (std::vector<std::string>{"new_limit", "swiglu_limit"}));
}

TEST(UnknownModelTypes, AreToldTheNearestAndWhereAllAreListed) {
  const std::string all = ", or another of " + std::to_string(model_types().size()) +
                          " (`moe_inspect --types` and docs/models.md list them)";
  const std::string misspelt = error_of_block("qwen3_mo", {{"num_experts", 8}});
  EXPECT_TRUE(
      misspelt.starts_with("config.json: model_type is \"qwen3_mo\" (did you mean \"qwen3_moe\"?), expected one "
                           "of qwen3_moe, "))
      << misspelt;
  EXPECT_TRUE(misspelt.ends_with(all)) << misspelt;
  const std::string dense = error_of_block("llama", {});
  EXPECT_TRUE(
      dense.starts_with("config.json: model_type is \"llama\" and no key speaks of experts: this is a dense "
                        "model, without MoE layers to load; expected one of "))
      << dense;
  EXPECT_TRUE(dense.ends_with(all)) << dense;
}

TEST(Messages, ThatAreTooLongEndBehindAWord) {
  const auto message = [](const std::string& text) { return test::error_of<Error>([&] { fail(text); }); };
  std::string words;
  while (words.size() < 2 * max_message_bytes) words += "word" + std::to_string(words.size()) + ", ";
  const std::string cut = message(words);
  EXPECT_LE(cut.size(), max_message_bytes);
  EXPECT_GT(cut.size(), max_message_bytes - 100);
  ASSERT_TRUE(cut.ends_with("…")) << cut;
  const std::string kept = cut.substr(0, cut.size() - std::string("…").size());
  EXPECT_TRUE(words.starts_with(kept + ", ")) << cut;

  std::string letters;  // of two bytes, of which none is halved, wherever the cut falls
  while (letters.size() < 2 * max_message_bytes) letters += "é";
  for (const char* const before : {"", "x"}) {
    const std::string halves = message(before + letters);
    EXPECT_LE(halves.size(), max_message_bytes);
    EXPECT_TRUE(halves.ends_with("é…")) << halves;
  }
  EXPECT_EQ(message(std::string(max_message_bytes, 'x')), std::string(max_message_bytes, 'x'));
}

}  // namespace
