/// @file  The shapes of published models, by name.
///
/// Numbers are those of each model's released configuration; the paper or card that describes it is named in the table.
/// What is counted is the text model as it generates: no vision tower, no multi-token-prediction head.
#pragma once

#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <variant>

#include "moe/core/types.hpp"
#include "moe/models/moe_shape.hpp"
#include "moe/routers/sparse_mixer.hpp"
#include "moe/routers/top_k.hpp"

namespace moe::inline MOE_TARGET {

/// How queries and keys are normalised: with one gain a unit of a head, shared by all heads, or a unit of all heads.
/// A norm without gains has no parameters, and counts as none.
enum class QkNorm { none, per_head, all_heads };

/// Multi-head attention in which several query heads share a key and a value head.
/// Ainslie et al. 2023, "GQA", arXiv:2305.13245.
struct GroupedQueryAttention {
  Index num_heads = 0;
  Index num_kv_heads = 0;
  Index d_head = 128;
  bool qkv_bias = false;
  bool output_bias = false;
  bool sinks = false;  // one learned logit a head, for attending to nothing
  QkNorm qk_norm = QkNorm::none;
};

/// Multi-head latent attention: queries, keys and values come from normalised low-rank latents.
/// DeepSeek-AI 2024, "DeepSeek-V2", §2.1, arXiv:2405.04434. The defaults are its own; Kimi K2 and LongCat kept them.
struct LatentAttention {
  Index num_heads = 0;
  Index q_lora = 0;  // 0: queries are projected directly
  Index kv_lora = 512;
  Index d_nope = 128;  // of a query or key head, without position
  Index d_rope = 64;   // of a query head, with position; the key's is shared by all heads
  Index d_value = 128;
};

/// What stands around the MoE layers of a decoder: embeddings (untied), attention, dense layers, norms.
/// Two norms an attention layer, one after all. An attention layer is followed by an MoE or a dense layer, so that
/// attention_layers = moe_layers + dense_layers; LongCat, whose MoE runs beside two dense layers, is the exception.
struct ModelShape {
  Index vocabulary = 0;  // rows of the embedding, padding included
  Index attention_layers = 0;
  Index moe_layers = 0;
  Index dense_layers = 0;
  Index d_ff_dense = 0;
  std::variant<GroupedQueryAttention, LatentAttention> attention = {};
  bool norm_bias = false;    // LayerNorm; without it RMSNorm
  bool output_bias = false;  // on the logits of the vocabulary
};

/// A model: its MoE layer, all of them alike, and what stands around it.
struct Preset {
  std::string_view name;
  MoeShape moe;
  ModelShape model;
};

/// An MoE layer that no model is known for.
struct LayerPreset {
  std::string_view name;
  MoeShape moe;
};

// ---------------------------------------------------------------------------------------------- counting parameters

/// Parameters of one layer: all of them, and those that one token meets.
struct LayerParams {
  Index total = 0;
  Index active = 0;
};

/// Parameters of a whole model. Makers differ in whether "active" has the input embedding, of which a token reads one
/// row: Mixtral and Llama 4 count it, gpt-oss and DeepSeek do not.
struct ModelParams {
  Index total = 0;
  Index active = 0;
  Index active_without_embedding = 0;
};

/// Gated FFN: W_gate and W_up (d_ff × d_model), W_down (d_model × d_ff).
constexpr Index count_gated_ffn_params(Index d_model, Index d_ff, bool bias = false) {
  return 3 * d_model * d_ff + (bias ? 2 * d_ff + d_model : 0);
}

/// Plain FFN: W_in (d_ff × d_model), W_out (d_model × d_ff).
constexpr Index count_ffn_params(Index d_model, Index d_ff, bool bias = false) {
  return 2 * d_model * d_ff + (bias ? d_ff + d_model : 0);
}

/// Router, experts, shared experts, latent projections. A token is taken to choose top_k experts with parameters. Where
/// there are zero experts that is the most it can meet; a copy of the shape with a smaller top_k gives the average and
/// the least.
constexpr LayerParams count_params(const MoeShape& moe) {
  const Index choices = moe.num_experts + moe.num_zero_experts;
  const Index router = choices * (moe.d_model + moe.router_bias + moe.selection_bias);
  const auto count = [&](const HiddenActivation& hidden, Index width, Index d_ff) {
    return is_gated(hidden) ? count_gated_ffn_params(width, d_ff, moe.expert_bias)
                            : count_ffn_params(width, d_ff, moe.expert_bias);
  };
  const Index shared = moe.d_ff_shared > 0 ? count(moe.hidden_shared, moe.d_model, moe.d_ff_shared) : 0;
  const Index latent =
      moe.d_latent > 0 ? 2 * moe.d_model * moe.d_latent + (moe.expert_bias ? moe.d_model + moe.d_latent : 0) : 0;
  const Index always = router + shared + (moe.shared_gate ? moe.d_model : 0) + latent;
  const Index expert = count(moe.hidden, moe.d_latent > 0 ? moe.d_latent : moe.d_model, moe.d_ff);
  return {.total = always + moe.num_experts * expert, .active = always + moe.top_k * expert};
}

/// W_q, W_k, W_v and W_o, with their biases, norms and sinks, if there.
constexpr Index count_params(const GroupedQueryAttention& attention, Index d_model) {
  const Index d_query = attention.num_heads * attention.d_head;
  const Index d_key = attention.num_kv_heads * attention.d_head;
  const Index inputs = (d_query + 2 * d_key) * (d_model + attention.qkv_bias);
  const Index output = (d_query + attention.output_bias) * d_model;
  const Index norms = attention.qk_norm == QkNorm::per_head    ? 2 * attention.d_head
                      : attention.qk_norm == QkNorm::all_heads ? d_query + d_key
                                                               : 0;
  return inputs + output + norms + (attention.sinks ? attention.num_heads : 0);
}

/// A latent of width c is W_down (c × d_model), a norm with c gains, W_up (d × c): c · (d_model + 1 + d).
constexpr Index count_params(const LatentAttention& attention, Index d_model) {
  const auto& [num_heads, q_lora, kv_lora, d_nope, d_rope, d_value] = attention;
  const Index d_query = num_heads * (d_nope + d_rope);
  const Index query = q_lora == 0 ? d_query * d_model : q_lora * (d_model + 1 + d_query);
  const Index key_value = kv_lora * (d_model + 1 + num_heads * (d_nope + d_value)) + d_rope * d_model;
  const Index output = d_model * num_heads * d_value;
  return query + key_value + output;
}

/// Of all layers and the embeddings: in total, and those that a token meets.
constexpr ModelParams count_params(const Preset& preset) {
  const ModelShape& model = preset.model;
  const Index d_model = preset.moe.d_model;
  const LayerParams moe = count_params(preset.moe);
  const Index dense = count_gated_ffn_params(d_model, model.d_ff_dense);
  const Index attention = std::visit([&](const auto& kind) { return count_params(kind, d_model); }, model.attention);
  const Index norm = model.norm_bias ? 2 * d_model : d_model;
  const Index embedding = model.vocabulary * d_model;
  const Index output = embedding + (model.output_bias ? model.vocabulary : 0);
  const Index beside = model.attention_layers * (attention + 2 * norm) + model.dense_layers * dense + norm + output;
  return {.total = beside + model.moe_layers * moe.total + embedding,
          .active = beside + model.moe_layers * moe.active + embedding,
          .active_without_embedding = beside + model.moe_layers * moe.active};
}

// ------------------------------------------------------------------------------------------------------- the models

namespace detail {

// A row a line for what routes and for what surrounds it; the formatter would give every field its own.
// clang-format off
inline constexpr Preset published[] = {
    // Mistral AI 2024, "Mixtral of Experts", arXiv:2401.04088.
    {.name = "mixtral-8x7b",
     .moe = {.d_model = 4096, .d_ff = 14336, .num_experts = 8, .top_k = 2,
             .router = TopKOptions{.top_k = 2, .renormalize = true}},
     .model = {.vocabulary = 32000, .attention_layers = 32, .moe_layers = 32,
               .attention = GroupedQueryAttention{.num_heads = 32, .num_kv_heads = 8}}},
    {.name = "mixtral-8x22b",
     .moe = {.d_model = 6144, .d_ff = 16384, .num_experts = 8, .top_k = 2,
             .router = TopKOptions{.top_k = 2, .renormalize = true}},
     .model = {.vocabulary = 32768, .attention_layers = 56, .moe_layers = 56,
               .attention = GroupedQueryAttention{.num_heads = 48, .num_kv_heads = 8}}},

    // Meta 2025, Llama 4 model card. In Maverick every second layer is dense. The q and k norms have no gains.
    {.name = "llama4-scout",
     .moe = {.d_model = 5120, .d_ff = 8192, .num_experts = 16, .top_k = 1, .d_ff_shared = 8192,
             .router = TopKOptions{.top_k = 1, .score = Score::sigmoid, .weight_on = WeightOn::input}},
     .model = {.vocabulary = 202048, .attention_layers = 48, .moe_layers = 48,
               .attention = GroupedQueryAttention{.num_heads = 40, .num_kv_heads = 8}}},
    {.name = "llama4-maverick",
     .moe = {.d_model = 5120, .d_ff = 8192, .num_experts = 128, .top_k = 1, .d_ff_shared = 8192,
             .router = TopKOptions{.top_k = 1, .score = Score::sigmoid, .weight_on = WeightOn::input}},
     .model = {.vocabulary = 202048, .attention_layers = 48, .moe_layers = 24, .dense_layers = 24, .d_ff_dense = 16384,
               .attention = GroupedQueryAttention{.num_heads = 40, .num_kv_heads = 8}}},

    // Qwen Team 2025, "Qwen3 Technical Report", arXiv:2505.09388.
    {.name = "qwen3-30b-a3b",
     .moe = {.d_model = 2048, .d_ff = 768, .num_experts = 128, .top_k = 8,
             .router = TopKOptions{.top_k = 8, .renormalize = true}},
     .model = {.vocabulary = 151936, .attention_layers = 48, .moe_layers = 48,
               .attention = GroupedQueryAttention{.num_heads = 32, .num_kv_heads = 4, .qk_norm = QkNorm::per_head}}},
    {.name = "qwen3-235b-a22b",
     .moe = {.d_model = 4096, .d_ff = 1536, .num_experts = 128, .top_k = 8,
             .router = TopKOptions{.top_k = 8, .renormalize = true}},
     .model = {.vocabulary = 151936, .attention_layers = 94, .moe_layers = 94,
               .attention = GroupedQueryAttention{.num_heads = 64, .num_kv_heads = 4, .qk_norm = QkNorm::per_head}}},

    // DeepSeek-AI: "DeepSeekMoE", arXiv:2401.06066; "DeepSeek-V2", arXiv:2405.04434; "DeepSeek-V3", arXiv:2412.19437.
    {.name = "deepseek-moe-16b",
     .moe = {.d_model = 2048, .d_ff = 1408, .num_experts = 64, .top_k = 6, .d_ff_shared = 2 * 1408,
             .router = TopKOptions{.top_k = 6}},
     .model = {.vocabulary = 102400, .attention_layers = 28, .moe_layers = 27, .dense_layers = 1, .d_ff_dense = 10944,
               .attention = GroupedQueryAttention{.num_heads = 16, .num_kv_heads = 16}}},
    {.name = "deepseek-v2-lite",
     .moe = {.d_model = 2048, .d_ff = 1408, .num_experts = 64, .top_k = 6, .d_ff_shared = 2 * 1408,
             .router = TopKOptions{.top_k = 6}},
     .model = {.vocabulary = 102400, .attention_layers = 27, .moe_layers = 26, .dense_layers = 1, .d_ff_dense = 10944,
               .attention = LatentAttention{.num_heads = 16}}},
    {.name = "deepseek-v2",
     .moe = {.d_model = 5120, .d_ff = 1536, .num_experts = 160, .top_k = 6, .d_ff_shared = 2 * 1536,
             .router = TopKOptions{.top_k = 6, .scale = 16, .num_groups = 8, .kept_groups = 3}},
     .model = {.vocabulary = 102400, .attention_layers = 60, .moe_layers = 59, .dense_layers = 1, .d_ff_dense = 12288,
               .attention = LatentAttention{.num_heads = 128, .q_lora = 1536}}},
    {.name = "deepseek-v3",
     .moe = {.d_model = 7168, .d_ff = 2048, .num_experts = 256, .top_k = 8, .d_ff_shared = 2048, .selection_bias = true,
             .router = TopKOptions{.top_k = 8, .score = Score::sigmoid, .renormalize = true, .epsilon = 1e-20,
                                   .scale = 2.5, .num_groups = 8, .kept_groups = 4,
                                   .group_top = 2}},
     .model = {.vocabulary = 129280, .attention_layers = 61, .moe_layers = 58, .dense_layers = 3, .d_ff_dense = 18432,
               .attention = LatentAttention{.num_heads = 128, .q_lora = 1536}}},

    // Moonshot AI 2025, "Kimi K2", arXiv:2507.20534.
    {.name = "kimi-k2",
     .moe = {.d_model = 7168, .d_ff = 2048, .num_experts = 384, .top_k = 8, .d_ff_shared = 2048, .selection_bias = true,
             .router = TopKOptions{.top_k = 8, .score = Score::sigmoid, .renormalize = true, .epsilon = 1e-20,
                                   .scale = 2.827}},
     .model = {.vocabulary = 163840, .attention_layers = 61, .moe_layers = 60, .dense_layers = 1, .d_ff_dense = 18432,
               .attention = LatentAttention{.num_heads = 64, .q_lora = 1536}}},

    // OpenAI 2025, "gpt-oss-120b & gpt-oss-20b Model Card", arXiv:2508.10925.
    {.name = "gpt-oss-120b",
     .moe = {.d_model = 2880, .d_ff = 2880, .num_experts = 128, .top_k = 4, .expert_bias = true, .router_bias = true,
             .hidden = AnyGatedActivation(GptOssGlu{}), .router = TopKOptions{.top_k = 4, .score = Score::softmax_of_chosen}},
     .model = {.vocabulary = 201088, .attention_layers = 36, .moe_layers = 36,
               .attention = GroupedQueryAttention{.num_heads = 64, .num_kv_heads = 8, .d_head = 64,
                                                  .qkv_bias = true, .output_bias = true, .sinks = true}}},
    {.name = "gpt-oss-20b",
     .moe = {.d_model = 2880, .d_ff = 2880, .num_experts = 32, .top_k = 4, .expert_bias = true, .router_bias = true,
             .hidden = AnyGatedActivation(GptOssGlu{}), .router = TopKOptions{.top_k = 4, .score = Score::softmax_of_chosen}},
     .model = {.vocabulary = 201088, .attention_layers = 24, .moe_layers = 24,
               .attention = GroupedQueryAttention{.num_heads = 64, .num_kv_heads = 8, .d_head = 64,
                                                  .qkv_bias = true, .output_bias = true, .sinks = true}}},

    // Muennighoff et al. 2024, "OLMoE", arXiv:2409.02060.
    {.name = "olmoe-1b-7b",
     .moe = {.d_model = 2048, .d_ff = 1024, .num_experts = 64, .top_k = 8,
             .router = TopKOptions{.top_k = 8}},
     .model = {.vocabulary = 50304, .attention_layers = 16, .moe_layers = 16,
               .attention = GroupedQueryAttention{.num_heads = 16, .num_kv_heads = 16, .qk_norm = QkNorm::all_heads}}},

    // Zhipu AI 2025, "GLM-4.5", arXiv:2508.06471.
    {.name = "glm-4.5",
     .moe = {.d_model = 5120, .d_ff = 1536, .num_experts = 160, .top_k = 8, .d_ff_shared = 1536, .selection_bias = true,
             .router = TopKOptions{.top_k = 8, .score = Score::sigmoid, .renormalize = true, .epsilon = 1e-20,
                                   .scale = 2.5}},
     .model = {.vocabulary = 151552, .attention_layers = 92, .moe_layers = 89, .dense_layers = 3, .d_ff_dense = 12288,
               .attention = GroupedQueryAttention{.num_heads = 96, .num_kv_heads = 8, .qkv_bias = true,
                                                  .qk_norm = QkNorm::per_head}}},
    {.name = "glm-4.5-air",
     .moe = {.d_model = 4096, .d_ff = 1408, .num_experts = 128, .top_k = 8, .d_ff_shared = 1408, .selection_bias = true,
             .router = TopKOptions{.top_k = 8, .score = Score::sigmoid, .renormalize = true, .epsilon = 1e-20}},
     .model = {.vocabulary = 151552, .attention_layers = 46, .moe_layers = 45, .dense_layers = 1, .d_ff_dense = 10944,
               .attention = GroupedQueryAttention{.num_heads = 96, .num_kv_heads = 8, .qkv_bias = true}}},

    // MiniMax 2025, MiniMax-M2 model card.
    {.name = "minimax-m2",
     .moe = {.d_model = 3072, .d_ff = 1536, .num_experts = 256, .top_k = 8, .selection_bias = true,
             .router = TopKOptions{.top_k = 8, .score = Score::sigmoid, .renormalize = true}},
     .model = {.vocabulary = 200064, .attention_layers = 62, .moe_layers = 62,
               .attention = GroupedQueryAttention{.num_heads = 48, .num_kv_heads = 8, .qk_norm = QkNorm::all_heads}}},

    // Microsoft 2024, "Phi-3 Technical Report", arXiv:2404.14219. Its router is SparseMixer, arXiv:2409.12136.
    {.name = "phi-3.5-moe",
     .moe = {.d_model = 4096, .d_ff = 6400, .num_experts = 16, .top_k = 2,
             .router = SparseMixerOptions{.top_k = 2, .jitter = 0.01}},
     .model = {.vocabulary = 32064, .attention_layers = 32, .moe_layers = 32,
               .attention = GroupedQueryAttention{.num_heads = 32, .num_kv_heads = 8, .qkv_bias = true,
                                                  .output_bias = true},
               .norm_bias = true, .output_bias = true}},

    // Meituan 2025, "LongCat-Flash", arXiv:2509.01322. Its 28 layers hold two of attention, two dense, one MoE.
    {.name = "longcat-flash",
     .moe = {.d_model = 6144, .d_ff = 2048, .num_experts = 512, .top_k = 12, .num_zero_experts = 256,
             .selection_bias = true, .router = TopKOptions{.top_k = 12, .scale = 6}},
     .model = {.vocabulary = 131072, .attention_layers = 56, .moe_layers = 28, .dense_layers = 56, .d_ff_dense = 12288,
               .attention = LatentAttention{.num_heads = 64, .q_lora = 1536}}},
};

// Small enough for a benchmark's inner loop: a quarter of Mixtral 8x7B in both widths, and of Llama 4 Scout without its
// shared expert.
inline constexpr LayerPreset small_layers[] = {
    {.name = "mixtral-small",
     .moe = {.d_model = 1024, .d_ff = 3584, .num_experts = 8, .top_k = 2,
             .router = TopKOptions{.top_k = 2, .renormalize = true}}},
    {.name = "llama4-small",
     .moe = {.d_model = 1280, .d_ff = 2048, .num_experts = 16, .top_k = 1,
             .router = TopKOptions{.top_k = 1, .score = Score::sigmoid, .weight_on = WeightOn::input}}},
};
// clang-format on

template <class... Entry>
[[noreturn]] void throw_unknown(std::string_view name, std::span<const Entry>... tables) {
  std::string message = "no shape is called \"" + std::string(name) + "\"; there are";
  const auto list = [&](const auto& table) {
    for (const auto& entry : table) (message += ' ') += entry.name;
  };
  (list(tables), ...);
  throw std::invalid_argument(message);
}

}  // namespace detail

/// All published models, family by family.
inline std::span<const Preset> presets() { return detail::published; }

/// All layers without a model.
inline std::span<const LayerPreset> layer_presets() { return detail::small_layers; }

/// @throws std::invalid_argument listing the names of all models unless this is one.
inline const Preset& preset(std::string_view name) {
  for (const Preset& candidate : presets()) {
    if (candidate.name == name) return candidate;
  }
  detail::throw_unknown(name, presets());
}

/// The MoE layer of a model, or one without a model.
/// @throws std::invalid_argument listing the names of both unless this is one.
inline const MoeShape& layer_shape(std::string_view name) {
  for (const LayerPreset& candidate : layer_presets()) {
    if (candidate.name == name) return candidate.moe;
  }
  for (const Preset& candidate : presets()) {
    if (candidate.name == name) return candidate.moe;
  }
  detail::throw_unknown(name, presets(), layer_presets());
}

}  // namespace moe::inline MOE_TARGET
