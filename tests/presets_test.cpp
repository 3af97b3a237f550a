#include <cmath>
#include <iterator>
#include <stdexcept>
#include <string>
#include <string_view>
#include <variant>

#include <gtest/gtest.h>

#include "moe/models/presets.hpp"
#include "moe/routers/linear_top_k.hpp"

namespace {

using moe::Index;

/// Parameters as they are printed: to the nearest multiple of `unit`, both in billions.
double rounded(Index params, double unit) { return std::round(static_cast<double>(params) / (1e9 * unit)); }

/// The same with the digits that do not fit cut off, as some makers do.
double cut(Index params, double unit) { return std::floor(static_cast<double>(params) / (1e9 * unit)); }

/// A printed figure as a multiple of its unit: exactly what rounded() and cut() return.
double printed(double billions, double unit) { return std::round(billions / unit); }

/// Llama4VisionModel beside the text of both Llama 4 models: 34 layers of width 1408 on 24 × 24 patches, adapter,
/// projector.
constexpr Index llama4_vision_params() {
  constexpr Index d = 1408, d_ff = 5632, d_adapter = 4096, d_text = 5120, patch = 3 * 14 * 14, positions = 24 * 24 + 1;
  constexpr Index layer = 4 * (d * d + d) + 2 * d * d_ff + d_ff + d + 2 * 2 * d;
  constexpr Index adapter = d_ff * d_adapter + d_adapter * d_adapter;
  return patch * d + d + positions * d + 2 * 2 * d + 34 * layer + adapter + d_adapter * d_text;
}

}  // namespace

TEST(Presets, TotalAndActiveParametersAgreeWithThePublishedShapes) {
  const struct {
    std::string_view name;
    double total, active, active_without_embedding;  // billions
  } figures[] = {
      {"mixtral-8x7b", 46.70, 12.88, 12.75},   {"mixtral-8x22b", 140.63, 39.16, 38.96},
      {"llama4-scout", 107.77, 17.17, 16.14},  {"llama4-maverick", 400.71, 17.18, 16.15},
      {"qwen3-30b-a3b", 30.53, 3.35, 3.04},    {"qwen3-235b-a22b", 235.09, 22.19, 21.57},
      {"deepseek-moe-16b", 16.38, 2.83, 2.62}, {"deepseek-v2-lite", 15.71, 2.66, 2.45},
      {"deepseek-v2", 235.74, 21.38, 20.85},   {"deepseek-v3", 671.03, 37.55, 36.63},
      {"kimi-k2", 1026.41, 32.86, 31.69},      {"gpt-oss-120b", 116.83, 5.71, 5.13},
      {"gpt-oss-20b", 20.91, 4.19, 3.61},      {"olmoe-1b-7b", 6.92, 1.28, 1.18},
      {"glm-4.5", 352.80, 33.63, 32.86},       {"glm-4.5-air", 106.85, 13.42, 12.80},
      {"minimax-m2", 228.69, 11.03, 10.42},    {"phi-3.5-moe", 41.87, 6.64, 6.51},
      {"longcat-flash", 560.66, 32.18, 31.38},
  };
  EXPECT_EQ(std::size(figures), moe::presets().size());
  for (const auto& figure : figures) {
    const moe::ModelParams params = count_params(moe::preset(figure.name));
    EXPECT_EQ(rounded(params.total, 0.01), printed(figure.total, 0.01)) << figure.name;
    EXPECT_EQ(rounded(params.active, 0.01), printed(figure.active, 0.01)) << figure.name;
    EXPECT_EQ(rounded(params.active_without_embedding, 0.01), printed(figure.active_without_embedding, 0.01))
        << figure.name;
  }
}

// Elements of all weights in the makers' releases, a 4-bit one counted once, multi-token-prediction layers left out.
TEST(Presets, TotalsAreThoseOfTheReleasedCheckpointsToTheLastParameter) {
  const struct {
    std::string_view name;
    Index checkpoint;
    Index beside_text = 0;
  } figures[] = {
      {"mixtral-8x7b", 46'702'792'704},
      {"mixtral-8x22b", 140'630'071'296},
      {"llama4-scout", 108'641'793'536, llama4_vision_params()},
      {"llama4-maverick", 401'583'781'376, llama4_vision_params()},
      {"qwen3-30b-a3b", 30'532'122'624},
      {"qwen3-235b-a22b", 235'093'634'560},
      {"deepseek-moe-16b", 16'375'728'128},
      {"deepseek-v2-lite", 15'706'484'224},
      {"deepseek-v2", 235'741'434'880},
      {"deepseek-v3", 671'026'419'200},
      {"kimi-k2", 1'026'408'232'448},
      {"gpt-oss-120b", 116'829'156'672},
      {"gpt-oss-20b", 20'914'757'184},
      {"olmoe-1b-7b", 6'919'161'856},
      {"glm-4.5", 352'797'829'024},
      {"glm-4.5-air", 106'852'251'264},
      {"minimax-m2", 228'689'764'864},
  };
  for (const auto& figure : figures) {
    EXPECT_EQ(count_params(moe::preset(figure.name)).total + figure.beside_text, figure.checkpoint) << figure.name;
  }
}

TEST(Presets, ParametersRoundToWhatTheMakersPublish) {
  enum class Embedding { counted, not_counted };
  const struct {
    std::string_view name;
    double total, total_unit;  // billions, and one of its last digit
    double active, active_unit;
    Embedding embedding;
    Index beside_text = 0;
  } figures[] = {
      {"mixtral-8x7b", 46.7, 0.1, 12.9, 0.1, Embedding::counted},
      {"llama4-scout", 109, 1, 17, 1, Embedding::counted, llama4_vision_params()},
      {"llama4-maverick", 400, 10, 17, 1, Embedding::counted, llama4_vision_params()},
      {"qwen3-235b-a22b", 235, 1, 22, 1, Embedding::counted},
      {"deepseek-v3", 671, 1, 37, 1, Embedding::not_counted},
      {"kimi-k2", 1000, 1000, 32, 1, Embedding::not_counted},
      {"gpt-oss-120b", 116.83, 0.01, 5.13, 0.01, Embedding::not_counted},
      {"gpt-oss-20b", 20.91, 0.01, 3.61, 0.01, Embedding::not_counted},
      {"olmoe-1b-7b", 6.9, 0.1, 1.3, 0.1, Embedding::counted},
  };
  for (const auto& figure : figures) {
    const moe::ModelParams params = count_params(moe::preset(figure.name));
    const bool counted = figure.embedding == Embedding::counted;
    EXPECT_EQ(rounded(params.total + figure.beside_text, figure.total_unit), printed(figure.total, figure.total_unit))
        << figure.name;
    EXPECT_EQ(rounded(counted ? params.active : params.active_without_embedding, figure.active_unit),
              printed(figure.active, figure.active_unit))
        << figure.name;
  }
}

TEST(Presets, Qwen3PublishesItsSmallerActiveCountCutNotRounded) {
  const moe::ModelParams params = count_params(moe::preset("qwen3-30b-a3b"));
  EXPECT_EQ(rounded(params.total, 0.1), printed(30.5, 0.1));
  EXPECT_EQ(cut(params.active, 0.1), printed(3.3, 0.1));  // 3.353
}

// Meituan 2025, arXiv:2509.01322, abstract: 560 B, of which a token activates 18.6 B to 31.3 B, on average about 27 B.
TEST(Presets, LongCatActivatesFewerParametersTheMoreZeroExpertsAreChosen) {
  moe::Preset longcat = moe::preset("longcat-flash");
  EXPECT_EQ(cut(count_params(longcat).total, 1), 560);
  EXPECT_EQ(cut(count_params(longcat).active_without_embedding, 0.1), printed(31.3, 0.1));

  longcat.moe.top_k = 12 * 512 / (512 + 256);  // all 768 choices equally often
  EXPECT_EQ(rounded(count_params(longcat).active_without_embedding, 1), 27);

  longcat.moe.top_k = 0;
  EXPECT_EQ(cut(count_params(longcat).active_without_embedding, 0.1), printed(18.6, 0.1));
}

// OpenAI 2025, arXiv:2508.10925, table 1: the MoE layers, attention, both embeddings.
TEST(Presets, GptOssHasTheBreakdownOfItsModelCard) {
  const auto expect = [](const char* name, double moe_layers, double attention_layers, double embeddings) {
    const auto& [_, shape, model] = moe::preset(name);
    const Index attention = count_params(std::get<moe::GroupedQueryAttention>(model.attention), shape.d_model);
    EXPECT_EQ(rounded(model.moe_layers * count_params(shape).total, 0.01), printed(moe_layers, 0.01)) << name;
    EXPECT_EQ(rounded(model.attention_layers * attention, 0.01), printed(attention_layers, 0.01)) << name;
    EXPECT_EQ(rounded(2 * model.vocabulary * shape.d_model, 0.01), printed(embeddings, 0.01)) << name;
  };
  expect("gpt-oss-120b", 114.71, 0.96, 1.16);
  expect("gpt-oss-20b", 19.12, 0.64, 1.16);
}

TEST(Presets, AMoeLayerIsRouterExpertsAndSharedExpertWithTheirBiases) {
  constexpr moe::MoeShape plain = {.d_model = 5, .d_ff = 7, .num_experts = 4, .top_k = 2};
  constexpr moe::LayerParams params = count_params(plain);
  static_assert(params.total == 4 * 5 + 4 * (3 * 5 * 7));
  static_assert(params.active == 4 * 5 + 2 * (3 * 5 * 7));

  constexpr moe::MoeShape full = {.d_model = 5,
                                  .d_ff = 7,
                                  .num_experts = 4,
                                  .top_k = 2,
                                  .d_ff_shared = 11,
                                  .num_zero_experts = 3,
                                  .expert_bias = true,
                                  .router_bias = true,
                                  .selection_bias = true,
                                  .shared_gate = true};
  constexpr Index router = (4 + 3) * 5 + (4 + 3) + (4 + 3);
  constexpr Index shared = 3 * 5 * 11 + (11 + 11 + 5) + 5;
  constexpr Index expert = 3 * 5 * 7 + 7 + 7 + 5;
  static_assert(count_params(full).total == router + shared + 4 * expert);
  static_assert(count_params(full).active == router + shared + 2 * expert);

  // Experts of a latent width, without a gate; the shared one is as wide as the model.
  constexpr moe::MoeShape latent = {.d_model = 5,
                                    .d_ff = 7,
                                    .num_experts = 4,
                                    .top_k = 2,
                                    .d_latent = 3,
                                    .d_ff_shared = 11,
                                    .expert_bias = true,
                                    .hidden = moe::AnyActivation(moe::ReluSquared{}),
                                    .hidden_shared = moe::AnyActivation(moe::ReluSquared{})};
  constexpr Index around = 4 * 5 + (2 * 5 * 11 + 11 + 5) + (2 * 5 * 3 + 3 + 5);
  static_assert(count_params(latent).total == around + 4 * (2 * 3 * 7 + 7 + 3));
  static_assert(count_params(latent).active == around + 2 * (2 * 3 * 7 + 7 + 3));
}

TEST(Presets, GroupedQueryAttentionIsItsFourProjectionsBiasesNormsAndSinks) {
  constexpr moe::GroupedQueryAttention plain = {.num_heads = 6, .num_kv_heads = 2, .d_head = 3};
  static_assert(count_params(plain, 5) == 18 * 5 + 2 * (6 * 5) + 5 * 18);

  constexpr moe::GroupedQueryAttention full = {.num_heads = 6,
                                               .num_kv_heads = 2,
                                               .d_head = 3,
                                               .qkv_bias = true,
                                               .output_bias = true,
                                               .sinks = true,
                                               .qk_norm = moe::QkNorm::per_head};
  static_assert(count_params(full, 5) == count_params(plain, 5) + (18 + 6 + 6) + 5 + 6 + (3 + 3));

  moe::GroupedQueryAttention whole = plain;
  whole.qk_norm = moe::QkNorm::all_heads;
  EXPECT_EQ(count_params(whole, 5), count_params(plain, 5) + (18 + 6));
}

TEST(Presets, LatentAttentionIsItsDownAndUpProjectionsAndTheNormBetween) {
  constexpr moe::LatentAttention direct = {.num_heads = 2, .kv_lora = 7, .d_nope = 3, .d_rope = 4, .d_value = 6};
  constexpr Index key_value = 5 * (7 + 4) + 7 + 7 * 2 * (3 + 6);
  constexpr Index output = 2 * 6 * 5;
  static_assert(count_params(direct, 5) == 5 * 2 * (3 + 4) + key_value + output);

  moe::LatentAttention low_rank = direct;
  low_rank.q_lora = 9;
  EXPECT_EQ(count_params(low_rank, 5), (5 * 9 + 9 + 9 * 2 * (3 + 4)) + key_value + output);
}

// Qwen Team 2024, "Qwen1.5-MoE": 14.3 B parameters, 2.7 B activated. Its shared expert has a gate.
TEST(Presets, CountTheParametersOfAModelOfYourOwn) {
  constexpr moe::Preset qwen1_5_moe = {
      .name = "qwen1.5-moe-a2.7b",
      .moe = {.d_model = 2048,
              .d_ff = 1408,
              .num_experts = 60,
              .top_k = 4,
              .d_ff_shared = 5632,
              .shared_gate = true,
              .router = moe::TopKOptions{.top_k = 4}},
      .model = {.vocabulary = 151936,
                .attention_layers = 24,
                .moe_layers = 24,
                .attention = moe::GroupedQueryAttention{.num_heads = 16, .num_kv_heads = 16, .qkv_bias = true}}};
  constexpr moe::ModelParams params = count_params(qwen1_5_moe);
  EXPECT_EQ(rounded(params.total, 0.1), printed(14.3, 0.1));
  EXPECT_EQ(rounded(params.active, 0.1), printed(2.7, 0.1));
}

TEST(Presets, EveryRouterFitsItsShape) {
  const auto expect_fits = [](std::string_view name, const moe::MoeShape& shape) {
    EXPECT_LE(shape.top_k, shape.num_experts) << name;
    const moe::Weight<float> weight = moe::Weight<float>::Zero(shape.num_experts + shape.num_zero_experts, 1);
    if (const auto* top_k = std::get_if<moe::TopKOptions>(&shape.router)) {
      EXPECT_EQ(top_k->top_k, shape.top_k) << name;
      EXPECT_NO_THROW(moe::LinearTopK<float>(weight, *top_k)) << name;
    } else {
      const auto& mixer = std::get<moe::SparseMixerOptions>(shape.router);
      EXPECT_EQ(mixer.top_k, shape.top_k) << name;
      EXPECT_NO_THROW(moe::SparseMixer<float>(weight, mixer)) << name;
    }
  };
  for (const auto& model : moe::presets()) expect_fits(model.name, model.moe);
  for (const auto& layer : moe::layer_presets()) expect_fits(layer.name, layer.moe);
}

TEST(Presets, OnlyPhiHasSparseMixer) {
  for (const auto& model : moe::presets()) {
    EXPECT_EQ(std::holds_alternative<moe::SparseMixerOptions>(model.moe.router), model.name == "phi-3.5-moe")
        << model.name;
  }
}

TEST(Presets, SelectionBiasGoesWithSigmoidScoresExceptInLlama4AndLongCat) {
  for (const auto& [name, shape, model] : moe::presets()) {
    const auto* const top_k = std::get_if<moe::TopKOptions>(&shape.router);
    const bool sigmoid = top_k && top_k->score == moe::Score::sigmoid;
    const bool llama4 = name.starts_with("llama4");
    EXPECT_EQ(shape.selection_bias, (sigmoid && !llama4) || name == "longcat-flash") << name;
  }
}

TEST(Presets, DenseLayersOfTheseModelsAreAsWideAsTheirActiveExperts) {
  for (const char* name : {"deepseek-v2", "deepseek-v3", "kimi-k2", "llama4-maverick"}) {
    const auto& [_, shape, model] = moe::preset(name);
    EXPECT_EQ(model.d_ff_dense, shape.top_k * shape.d_ff + shape.d_ff_shared) << name;
  }
}

TEST(Presets, AttentionIsFollowedByMoeOrDenseExceptInLongCat) {
  for (const auto& [name, shape, model] : moe::presets()) {
    const Index beside = name == "longcat-flash" ? model.moe_layers : 0;
    EXPECT_EQ(model.attention_layers, model.moe_layers + model.dense_layers - beside) << name;
  }
}

TEST(Presets, AreFoundByName) {
  for (const moe::Preset& model : moe::presets()) {
    EXPECT_EQ(&moe::preset(model.name), &model);
    EXPECT_EQ(&moe::layer_shape(model.name), &model.moe);
  }
  for (const moe::LayerPreset& layer : moe::layer_presets()) EXPECT_EQ(&moe::layer_shape(layer.name), &layer.moe);
}

TEST(Presets, ALayerWithoutAModelIsNoPreset) { EXPECT_THROW(moe::preset("mixtral-small"), std::invalid_argument); }

TEST(Presets, AnUnknownNameIsAnsweredWithAllKnownNames) {
  std::string message;
  try {
    moe::layer_shape("mixtral");
  } catch (const std::invalid_argument& error) {
    message = error.what();
  }
  EXPECT_TRUE(message.starts_with("no shape is called \"mixtral\"")) << message;
  for (const auto& model : moe::presets()) EXPECT_NE(message.find(model.name), std::string::npos) << model.name;
  for (const auto& layer : moe::layer_presets()) EXPECT_NE(message.find(layer.name), std::string::npos) << layer.name;
}
