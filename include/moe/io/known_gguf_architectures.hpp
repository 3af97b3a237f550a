/// @file  The architectures of llama.cpp that are known, by the model types whose mathematics they have.
///
/// Facts are those of llama.cpp's src/models and conversion (2026-08); where these round off what a model's own class
/// does (sums of weights at least 6e-5), the class counts.
#pragma once

#include <array>
#include <cmath>
#include <string_view>

#include "moe/core/types.hpp"
#include "moe/experts/any_activation.hpp"
#include "moe/io/architecture_settings.hpp"
#include "moe/io/config.hpp"

namespace moe::inline MOE_TARGET::io::detail {

/// expert_gating_func, as files number it.
enum class Gating { unsaid = 0, softmax = 1, sigmoid = 2, softmax_of_chosen = 3, sqrt_softplus = 4 };

/// Of an architecture that has the key, or does without.
enum class Renormalize { never, always, by_key };

/// What becomes of swiglu_clamp_exp and swiglu_clamp_shexp.
enum class Clamp {
  none,      ///< refused, where they say something
  one,       ///< of all layers alike
  of_layer,  ///< one for each layer, another for shared experts
};

struct GgufArchitecture {
  std::string_view name;        // general.architecture
  std::string_view model_type;  // whose mathematics it has
  Gating gating = Gating::softmax;
  bool gating_by_key = false;  // or else the key may only say the same
  Renormalize renormalize = Renormalize::always;
  const char* activation = "silu";
  bool own_router = false;    // options are those of the model type, which GGUF has no keys for
  bool dense_beside = false;  // ffn_gate, ffn_up and ffn_down of its MoE layers are no part of the block
  bool dense_shared = false;  // they are its shared expert
  bool gated = true;          // have experts a gate? …
  HiddenActivation (*hidden)(const Config&, Index, bool) = nullptr;  // … of a model type that no table here knows
  bool early_router = false;                                         // …, as Architecture has it
  Clamp clamp = Clamp::none;
  double (*output_scale)(const Config&) = nullptr;
  const char* refused = nullptr;  // why
  double epsilon = 0;             // beside sums of weights, in the model type's own class
  double floor = 0;               // these are at least so much there
  double limit = 0;               // where there is no swiglu_clamp_exp
};

/// Softmax, renormalised or not as the key says; sigmoid if there is no other word; and so on.
inline constexpr auto by_key = [](std::string_view name, std::string_view model_type, Gating absent,
                                  Renormalize renormalize = Renormalize::by_key) {
  return GgufArchitecture{.name = name,
                          .model_type = model_type,
                          .gating = absent,
                          .gating_by_key = true,
                          .renormalize = renormalize,
                          .epsilon = 1e-20};
};
inline constexpr auto softmax_of = [](std::string_view name, std::string_view model_type, Renormalize renormalize) {
  return GgufArchitecture{.name = name, .model_type = model_type, .renormalize = renormalize};
};
inline constexpr auto not_read = [](std::string_view name, const char* why) {
  return GgufArchitecture{.name = name, .model_type = "", .refused = why};
};
inline constexpr auto with_epsilon = [](GgufArchitecture of, double epsilon) {
  of.epsilon = epsilon;
  return of;
};
inline constexpr auto with_clamp = [](GgufArchitecture of, Clamp clamp) {
  of.clamp = clamp;
  return of;
};

inline bool has_shared(const Config& config) { return config.count("shared_expert_intermediate_size") > 0; }
inline double half_of_both(const Config& config) { return has_shared(config) ? 0.5 : 1; }
inline double root_of_half(const Config& config) { return has_shared(config) ? std::sqrt(0.5) : 1; }

inline constexpr auto gguf_architectures = std::to_array<GgufArchitecture>({
    // clang-format off
    softmax_of("qwen2moe", "qwen2_moe", Renormalize::never),
    softmax_of("qwen3moe", "qwen3_moe", Renormalize::always),
    softmax_of("qwen3vlmoe", "qwen3_vl_moe_text", Renormalize::always),
    softmax_of("qwen3next", "qwen3_next", Renormalize::always),
    softmax_of("qwen35moe", "qwen3_5_moe_text", Renormalize::always),
    softmax_of("qwen4exp", "qwen4_exp_text", Renormalize::always),
    softmax_of("rnd1", "rnd1", Renormalize::always),
    softmax_of("mellum", "mellum", Renormalize::always),
    softmax_of("llama", "mixtral", Renormalize::always),
    softmax_of("mixtral", "mixtral", Renormalize::always),
    softmax_of("mistral3", "mixtral", Renormalize::always),
    softmax_of("minimax-01", "minimax", Renormalize::always),
    softmax_of("olmoe", "olmoe", Renormalize::never),
    softmax_of("llada-moe", "llada_moe", Renormalize::never),
    softmax_of("jamba", "jamba", Renormalize::never),
    softmax_of("dbrx", "dbrx", Renormalize::always),
    softmax_of("granitemoe", "granitemoeshared", Renormalize::always),
    softmax_of("granitehybrid", "granitemoehybrid", Renormalize::always),
    softmax_of("granite_swa", "granitemoe_swa", Renormalize::always),
    softmax_of("hunyuan-moe", "hunyuan_v1_moe", Renormalize::always),
    {.name = "ernie4_5-moe", .model_type = "ernie4_5_moe", .floor = 1e-12},
    softmax_of("bailingmoe", "bailing_moe", Renormalize::by_key),
    softmax_of("deepseek", "deepseek", Renormalize::never),
    {.name = "arctic", .model_type = "arctic", .dense_beside = true},
    {.name = "grok", .model_type = "grok-1", .activation = "gelu_pytorch_tanh", .dense_shared = true, .output_scale = root_of_half},
    {.name = "phimoe", .model_type = "phimoe", .own_router = true},
    {.name = "llama4", .model_type = "llama4_text", .gating = Gating::sigmoid, .renormalize = Renormalize::never, .own_router = true},
    {.name = "gpt-oss", .model_type = "gpt_oss", .gating = Gating::softmax_of_chosen, .renormalize = Renormalize::never},
    {.name = "gemma4", .model_type = "gemma4_text", .activation = "gelu_pytorch_tanh", .own_router = true, .dense_beside = true},
    {.name = "mimo2", .model_type = "mimo_v2_flash", .gating = Gating::sigmoid, .epsilon = 1e-20},
    {.name = "nemotron_h_moe", .model_type = "nemotron_h", .gating = Gating::sigmoid, .renormalize = Renormalize::by_key, .activation = "relu2",
     .epsilon = 1e-20},
    {.name = "cohere2moe", .model_type = "cohere2_moe", .gating = Gating::sigmoid, .gating_by_key = true, .renormalize = Renormalize::by_key,
     .output_scale = half_of_both},
    by_key("deepseek2", "deepseek_v3", Gating::unsaid),  // or deepseek_v2
    by_key("deepseek2-ocr", "deepseek_ocr2_text", Gating::softmax),
    by_key("deepseek32", "deepseek_v32", Gating::sigmoid),
    by_key("mistral4", "mistral4", Gating::softmax),
    by_key("glm-dsa", "glm_moe_dsa", Gating::sigmoid),
    by_key("glm4moe", "glm4_moe", Gating::sigmoid),
    with_clamp(by_key("glm5-next", "glm5_next_text", Gating::sigmoid), Clamp::one),
    by_key("dots1", "dots1", Gating::sigmoid),
    by_key("dots3note", "dots3_note_text", Gating::sigmoid),
    by_key("bailingmoe2", "bailing_moe_v2", Gating::sigmoid),
    by_key("bailingmoe3", "bailing_hybrid", Gating::sigmoid),
    by_key("afmoe", "afmoe", Gating::sigmoid),
    with_epsilon(by_key("laguna", "laguna", Gating::sigmoid), 0),
    by_key("hy_v3", "hy_v3", Gating::sigmoid),
    with_clamp(by_key("hy_v4", "hy_v4", Gating::sigmoid), Clamp::one),
    by_key("exaone-moe", "exaone_moe", Gating::sigmoid),
    with_epsilon(by_key("minimax-m2", "minimax_m2", Gating::sigmoid, Renormalize::always), 0),
    with_epsilon(by_key("minimax-m3", "minimax_m3_vl_text", Gating::sigmoid), 0),
    by_key("kimi-linear", "kimi_linear", Gating::sigmoid, Renormalize::always),
    with_epsilon(by_key("lfm2moe", "lfm2_moe", Gating::sigmoid, Renormalize::always), 1e-6),
    with_epsilon(with_clamp(by_key("step35", "step3p5", Gating::sigmoid), Clamp::of_layer), 0),
    with_clamp(by_key("deepseek4", "deepseek_v4", Gating::sqrt_softplus), Clamp::one),
    {.name = "smallthinker", .model_type = "smallthinker", .gating = Gating::sigmoid, .gating_by_key = true, .activation = "relu",
     .early_router = true},
    {.name = "maple", .model_type = "maple", .hidden = clamped_inputs, .clamp = Clamp::one, .limit = 7},
    {.name = "kimi-k3", .model_type = "kimi_k3", .gating = Gating::sigmoid, .gating_by_key = true, .renormalize = Renormalize::by_key,
     .hidden = softcapped, .epsilon = 1e-20},
    {.name = "nomic-bert-moe", .model_type = "nomic_bert", .renormalize = Renormalize::never, .activation = "gelu", .gated = false},
    not_read("grovemoe", "its experts share further ones, in groups (ffn_*_chexps), and no part here does that"),
    // clang-format on
});

}  // namespace moe::inline MOE_TARGET::io::detail
