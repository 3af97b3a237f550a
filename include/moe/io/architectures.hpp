/// @file  The model types that are known: what each calls its settings and tensors, and what it is made of.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <deque>
#include <limits>
#include <mutex>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "moe/core/check.hpp"
#include "moe/core/types.hpp"
#include "moe/experts/any_activation.hpp"
#include "moe/io/architecture.hpp"
#include "moe/io/built_with.hpp"
#include "moe/io/config.hpp"
#include "moe/io/edit_distance.hpp"
#include "moe/io/error.hpp"
#include "moe/models/moe_shape.hpp"
#include "moe/routers/filters/capacity.hpp"
#include "moe/routers/sparse_mixer.hpp"
#include "moe/routers/top_k.hpp"

namespace moe::inline MOE_TARGET::io {

namespace detail {

// --------------------------------------------------------------------------------------------------- what config.json
// says

/// Python's truth: null is false.
inline bool is_set(const Config& config, const char* key) { return !config.is_null(key) && config.flag(key, false); }

/// One of some words.
/// @throws Error naming them, if it is another.
inline std::string one_of(const Config& config, const char* key, const std::vector<std::string>& words) {
  const std::string said = config.text(key);
  if (std::ranges::count(words, said) > 0) return said;
  std::string expected;
  for (const std::string& word : words) expected += (expected.empty() ? "\"" : " or \"") + word + "\"";
  fail(config.file(), ": ", key, " is \"", said, "\", expected ", expected);
}

/// Groups of experts; null is none.
inline void read_groups(const Config& config, TopKOptions& options) {
  if (config.is_null("n_group")) return;
  options.num_groups = config.integer("n_group");
  options.kept_groups = config.integer("topk_group");
}

inline RouterOptions softmax_top_k(const Config&) { return TopKOptions{}; }
inline RouterOptions softmax_renormalized(const Config&) { return TopKOptions{.renormalize = true}; }
inline RouterOptions softmax_of_chosen(const Config&) { return TopKOptions{.score = Score::softmax_of_chosen}; }
inline RouterOptions softmax_maybe_renormalized(const Config& config) {
  return TopKOptions{.renormalize = is_set(config, "norm_topk_prob")};
}
inline RouterOptions sigmoid_on_input(const Config&) {
  return TopKOptions{.score = Score::sigmoid, .weight_on = WeightOn::input};
}
inline RouterOptions sigmoid_maybe_renormalized(const Config& config) {
  return TopKOptions{.score = Score::sigmoid, .renormalize = is_set(config, "norm_topk_prob")};
}
inline RouterOptions sigmoid_renormalized(const Config&) {
  return TopKOptions{.score = Score::sigmoid, .renormalize = true};
}

/// Sigmoid, always renormalised, then scaled by the number at a key.
inline TopKOptions scaled_sigmoid(double scale, double epsilon) {
  return {.score = Score::sigmoid, .renormalize = true, .epsilon = epsilon, .scale = scale};
}
inline RouterOptions afmoe_options(const Config& config) { return scaled_sigmoid(config.number("route_scale"), 1e-20); }
inline RouterOptions hy_v3_options(const Config& config) {
  return scaled_sigmoid(config.number("router_scaling_factor"), 1e-20);
}
inline RouterOptions minimax_m3_options(const Config& config) {
  return scaled_sigmoid(config.number("routed_scaling_factor"), 0);
}
inline RouterOptions laguna_options(const Config& config) {
  TopKOptions options = scaled_sigmoid(config.number("moe_routed_scaling_factor"), 0);
  if (is_set(config, "moe_apply_router_weight_on_input")) options.weight_on = WeightOn::input;
  return options;
}
inline RouterOptions step_options(const Config& config) {
  return scaled_sigmoid(config.number("moe_router_scaling_factor"), 0);
}
inline RouterOptions muse_options(const Config& config) {
  return scaled_sigmoid(config.number("routed_scaling_factor"), 1e-15);
}
inline RouterOptions inkling2_options(const Config& config) {
  one_of(config, "scoring_func", {"sigmoid"});
  return scaled_sigmoid(config.number("route_scale"), 1e-20);
}
inline RouterOptions inkling_options(const Config& config) {
  return TopKOptions{.score = Score::sigmoid,
                     .renormalize = true,
                     .scale = config.number("route_scale"),
                     .always_chosen = config.count("n_shared_experts")};
}
inline RouterOptions lfm2_options(const Config& config) {
  return TopKOptions{.score = Score::sigmoid,
                     .renormalize = is_set(config, "norm_topk_prob"),
                     .epsilon = 1e-6,
                     .scale = config.number("routed_scaling_factor")};
}
inline RouterOptions kolibri_options(const Config& config) {
  return TopKOptions{
      .score = Score::sigmoid, .renormalize = is_set(config, "norm_topk_prob"), .bias_on = BiasOn::logits};
}
inline RouterOptions cohere2_options(const Config& config) {
  const RouterOptions by_sigmoid =
      sigmoid_maybe_renormalized(config);  // read in any case: with softmax nothing is left to do
  return one_of(config, "expert_selection_fn", {"softmax", "sigmoid"}) == "softmax" ? softmax_of_chosen(config)
                                                                                    : by_sigmoid;
}

/// DeepSeek's first: its own modeling_deepseek.py.
inline RouterOptions deepseek_options(const Config& config) {
  one_of(config, "scoring_func", {"softmax"});
  return softmax_maybe_renormalized(config);
}

/// As transformers' class, which wrote most folders: it scales, and does not renormalise. DeepSeek's own
/// modeling_deepseek.py either renormalises or scales: ReadOptions::hub_code.
inline RouterOptions deepseek_v2_options(const Config& config) {
  TopKOptions options{.scale = config.number("routed_scaling_factor", 1)};
  if (is_set(config, "norm_topk_prob") && config.hub_code()) {
    options.renormalize = true;
    options.epsilon = 1e-20;
    options.scale = 1;
  }
  config.is_null("n_group"), config.is_null("topk_group");  // read, whether they count or not
  if (one_of(config, "topk_method", {"greedy", "group_limited_greedy"}) == "group_limited_greedy") {
    options.num_groups = config.integer("n_group");
    options.kept_groups = config.integer("topk_group");
  }
  return options;
}

/// DeepSeek-V3 and those that took over its router.
inline TopKOptions deepseek_v3_top_k(const Config& config) {
  if (!config.is_null("topk_method")) one_of(config, "topk_method", {"noaux_tc"});
  TopKOptions options{.score = Score::sigmoid,
                      .renormalize = is_set(config, "norm_topk_prob"),
                      .epsilon = 1e-20,
                      .scale = config.number("routed_scaling_factor"),
                      .group_top = 2};
  read_groups(config, options);
  return options;
}
inline RouterOptions deepseek_v3_options(const Config& config) { return deepseek_v3_top_k(config); }

/// Its scale may be null, which is 1.
inline RouterOptions mimo_options(const Config& config) {
  TopKOptions options{.score = Score::sigmoid,
                      .renormalize = is_set(config, "norm_topk_prob"),
                      .epsilon = 1e-20,
                      .scale = config.is_null("routed_scaling_factor") ? 1 : config.number("routed_scaling_factor"),
                      .group_top = 2};
  read_groups(config, options);
  return options;
}

/// Experts of rejected groups count as 0, not as nothing.
inline RouterOptions axk2_options(const Config& config) {
  TopKOptions options = deepseek_v3_top_k(config);
  options.rejected_groups = RejectedGroups::ranked_at_zero;
  return options;
}
inline RouterOptions mistral4_options(const Config& config) {
  TopKOptions options = deepseek_v3_top_k(config);
  options.score = Score::softmax;
  options.rejected_groups = RejectedGroups::ranked_at_zero;
  return options;
}
inline RouterOptions mistral_large4_options(const Config& config) {
  TopKOptions options{.score = Score::softmax,
                      .renormalize = true,
                      .epsilon = 1e-20,
                      .scale = config.number("routed_scaling_factor"),
                      .group_top = 2};
  read_groups(config, options);
  options.rejected_groups = RejectedGroups::ranked_at_zero;
  return options;
}
inline RouterOptions deepseek_v4_options(const Config& config) {
  const std::string score = one_of(config, "scoring_func", {"sqrtsoftplus", "sigmoid", "softmax"});
  is_set(config, "norm_topk_prob");  // its class renormalises whatever this says
  return TopKOptions{.score = score == "sqrtsoftplus" ? Score::sqrt_softplus
                              : score == "sigmoid"    ? Score::sigmoid
                                                      : Score::softmax,
                     .renormalize = true,
                     .epsilon = 1e-20,
                     .scale = config.number("routed_scaling_factor")};
}

/// The p of its norm; null for no normalisation.
inline RouterOptions dbrx_options(const Config& config) {
  TopKOptions options;
  const char* const norm = "ffn_config.moe_normalize_expert_weights";
  options.norm = config.is_null(norm) ? 0 : config.number(norm);
  options.renormalize = options.norm != 0;
  if (!options.renormalize) options.norm = 1;
  return options;
}
inline RouterOptions ernie_options(const Config& config) {
  return TopKOptions{.renormalize = true, .floor = config.number("moe_norm_min", 1e-12)};
}
inline RouterOptions longcat_options(const Config& config) {
  return TopKOptions{.scale = config.number("routed_scaling_factor")};
}
inline RouterOptions sparse_mixer_options(const Config& config) {
  return SparseMixerOptions{.jitter = config.number("router_jitter_noise")};
}

/// The smallest difference that float sees at 1: below this the sum of two probabilities counts as this.
inline constexpr double nllb_floor = std::numeric_limits<float>::epsilon();

inline RouterOptions nllb_options(const Config& config) {
  one_of(config, "second_expert_policy", {"all"});
  TopKOptions options{.renormalize = is_set(config, "normalize_router_prob_before_dropping")};
  if (options.renormalize) options.floor = nllb_floor;
  return options;
}
inline CapacityOptions nllb_capacity(const Config& config) {
  return {.capacity = capacity_fraction(config.number("moe_eval_capacity_token_fraction")),
          .priority = is_set(config, "batch_prioritized_routing") ? Priority::batch : Priority::choice,
          .renormalize = !is_set(config, "normalize_router_prob_before_dropping"),
          .floor = nllb_floor};
}
inline double nllb_output_scale(const Config& config) { return 1 - config.number("moe_token_dropout"); }

inline CapacityOptions switch_capacity(const Config& config) {
  return {.capacity = fixed_capacity(config.integer("expert_capacity")),
          .priority = Priority::position,
          .per_sequence = true};
}

inline double half_if_averaged(const Config& config) {
  const bool average = one_of(config, "shared_expert_combination_strategy", {"average", "sum"}) == "average";
  return average && config.count("num_shared_experts") > 0 ? 0.5 : 1;
}
inline double output_multiplier(const Config& config) { return config.number("output_multiplier"); }
inline double laguna_cap(const Config& config) { return config.number("moe_router_logit_softcapping"); }

// ---- widths

inline Index shared_experts(const Config& config) {
  return config.count("n_shared_experts") * config.integer("moe_intermediate_size");
}
inline Index shared_experts_of_num(const Config& config) {
  return config.count("num_shared_experts") * config.integer("moe_intermediate_size");
}
inline Index shared_experts_as_wide(const Config& config) {
  return config.count("num_shared_experts") * config.integer("intermediate_size");
}
inline Index dots3_shared_experts(const Config& config) {
  return config.count("n_shared_experts") * config.count("shared_experts_intermediate_size");
}
inline Index shared_expert(const Config& config) { return config.count("shared_expert_intermediate_size"); }
inline Index ernie_shared_experts(const Config& config) {
  return config.count("moe_num_shared_experts") * config.integer("moe_intermediate_size");
}
inline Index ernie_vl_shared_experts(const Config& config) {
  return config.count("moe_num_shared_experts") * config.integer_in_list("moe_intermediate_size", 0);
}
inline Index aria_shared_experts(const Config& config) {
  return config.count("moe_num_shared_experts") * config.integer("intermediate_size");
}
inline Index shared_intermediate(const Config& config) { return config.count("shared_intermediate_size"); }
inline Index shared_as_wide_as_routed(const Config& config) { return config.integer("intermediate_size"); }
inline Index one_shared_expert(const Config& config) { return config.integer("moe_intermediate_size"); }
inline Index step_shared(const Config& config) { return config.count("share_expert_dim"); }
inline Index nemotron_shared(const Config& config) { return config.count("moe_shared_expert_intermediate_size"); }
inline Index nemotron_latent(const Config& config) { return config.count("moe_latent_size"); }
inline Index muse_latent(const Config& config) { return config.integer("moe_hidden_size"); }

// ---- activations

/// Gated by a function of this name, as config.json and PyTorch call it.
inline AnyGatedActivation gated_activation(const Config& config, const char* key) {
  const std::string name =
      one_of(config, key, {"silu", "swish", "gelu", "gelu_pytorch_tanh", "gelu_new", "relu", "relu2"});
  if (name == "gelu") return GeGlu{};
  if (name == "gelu_pytorch_tanh" || name == "gelu_new") return GeGluTanh{};
  if (name == "relu") return ReGlu{};
  if (name == "relu2") return Glu<ReluSquared>{};
  return SwiGlu{};
}

inline AnyActivation plain_activation(const Config& config, const char* key) {
  const std::string name =
      one_of(config, key, {"silu", "swish", "gelu", "gelu_pytorch_tanh", "gelu_new", "relu", "relu2"});
  if (name == "gelu") return Gelu{};
  if (name == "gelu_pytorch_tanh" || name == "gelu_new") return GeluTanh{};
  if (name == "relu") return Relu{};
  if (name == "relu2") return ReluSquared{};
  return Silu{};
}

inline float limit_of(const Config& config, const char* key, double limit) {
  if (!(limit > 0)) fail(config.file(), ": ", key, " is ", limit, ", expected more than 0");
  return static_cast<float>(limit);
}

inline HiddenActivation gpt_oss_glu(const Config& config, Index, bool) {
  return AnyGatedActivation(GptOssGlu{.limit = limit_of(config, "swiglu_limit", config.number("swiglu_limit")),
                                      .alpha = static_cast<float>(config.number("swiglu_alpha"))});
}
inline HiddenActivation clamped_inputs(const Config& config, Index, bool) {
  one_of(config, "hidden_act", {"silu", "swish"});
  return AnyGatedActivation(
      ClampedInputGlu<Silu>{.limit = limit_of(config, "swiglu_limit", config.number("swiglu_limit"))});
}
/// HunYuan 4's shared expert is not clamped.
inline HiddenActivation clamped_routed(const Config& config, Index layer, bool shared) {
  return shared ? HiddenActivation(gated_activation(config, "hidden_act")) : clamped_inputs(config, layer, shared);
}
inline HiddenActivation clamped_of_layer(const Config& config, Index layer, bool shared) {
  one_of(config, "hidden_act", {"silu", "swish"});
  const char* const key = shared ? "swiglu_limits_shared" : "swiglu_limits";
  const double limit = config.number_of_layer(key, layer);
  if (limit != 0) return AnyGatedActivation(ClampedOutputGlu<Silu>{.limit = limit_of(config, key, limit)});
  return gated_activation(config, "hidden_act");  // (AnyGatedActivation(SwiGlu{}) is uninitialized here to g++ 12)
}
inline HiddenActivation softcapped(const Config& config, Index, bool) {
  one_of(config, "hidden_act", {"silu", "swish"});
  const auto cap = [&](const char* key) { return limit_of(config, key, config.number(key)); };
  return AnyGatedActivation(SoftcappedSwiGlu{.gate_cap = cap("mlp_gate_softcap"), .up_cap = cap("mlp_up_softcap")});
}
inline HiddenActivation always_swiglu(const Config&, Index, bool) { return AnyGatedActivation(SwiGlu{}); }
/// Aria's routed experts are SwiGLU whatever the key says; the shared one is what it says.
inline HiddenActivation swiglu_routed(const Config& config, Index, bool shared) {
  const AnyGatedActivation said = gated_activation(config, "hidden_act");
  return shared ? said : AnyGatedActivation(SwiGlu{});
}

// ------------------------------------------------------------------------------------------------------------- the
// table

inline constexpr auto known_architectures = std::to_array<Architecture>({
    // clang-format off
    {.model_type = "mixtral|minimax", .num_experts = "num_local_experts", .d_ff = "intermediate_size", .router_options = softmax_renormalized},
    {.model_type = "minimax_m2", .num_experts = "num_local_experts", .d_ff = "intermediate_size", .router_options = sigmoid_renormalized,
     .selection_bias = "e_score_correction_bias|gate.e_score_correction_bias"},
    {.model_type = "minimax_m3_vl_text", .num_experts = "num_local_experts", .d_ff = "intermediate_size", .router_options = minimax_m3_options,
     .selection_bias = "e_score_correction_bias|gate.e_score_correction_bias", .hidden = gpt_oss_glu,
     .d_ff_shared = shared_intermediate, .shared = "shared_experts."},
    {.model_type = "lfm2_moe", .router_options = lfm2_options, .selection_bias = "expert_bias", .selection_bias_if = "use_expert_bias",
     .hidden = always_swiglu},
    {.model_type = "qwen2_moe|qwen3_next|qwen4_exp_text|qwen3_omni_moe_talker_text", .router_options = softmax_maybe_renormalized,
     .d_ff_shared = shared_expert, .shared = "shared_expert.", .shared_gate = "shared_expert_gate.weight"},
    {.model_type = "qwen3_5_moe_text", .router_options = softmax_renormalized,
     .d_ff_shared = shared_expert, .shared = "shared_expert.", .shared_gate = "shared_expert_gate.weight"},
    {.model_type = "qwen3_moe|mellum|qwen3_omni_moe_text", .router_options = softmax_maybe_renormalized},
    {.model_type = "qwen3_vl_moe_text", .router_options = softmax_renormalized},
    {.model_type = "olmoe|flex_olmo", .d_ff = "intermediate_size", .router_options = softmax_maybe_renormalized},
    {.model_type = "jamba", .d_ff = "intermediate_size", .router_options = softmax_top_k},
    {.model_type = "hunyuan_v1_moe", .top_k = "moe_topk", .d_ff = "intermediate_size", .router_options = softmax_renormalized,
     .router = "gate.wg.weight|gate.weight", .d_ff_shared = shared_as_wide_as_routed, .shared = "shared_mlp."},
    {.model_type = "hy_v3", .bias = "mlp_bias", .router_options = hy_v3_options, .router = "router.gate.weight|gate.weight",
     .selection_bias = "expert_bias|e_score_correction_bias", .d_ff_shared = shared_experts_of_num, .shared = "shared_mlp.|shared_experts."},
    {.model_type = "llama4_text", .num_experts = "num_local_experts", .d_ff = "intermediate_size", .router_options = sigmoid_on_input,
     .turned_adapters = true,
     .d_ff_shared = shared_as_wide_as_routed, .shared = "shared_expert."},
    {.model_type = "deepseek", .num_experts = "n_routed_experts", .router_options = deepseek_options,
     .d_ff_shared = shared_experts, .shared = "shared_experts."},
    {.model_type = "deepseek_v2|deepseek_ocr2_text|unlimited_ocr_text", .num_experts = "n_routed_experts", .bias = "mlp_bias",
     .router_options = deepseek_v2_options, .d_ff_shared = shared_experts, .shared = "shared_experts."},
    {.model_type = "deepseek_v3|deepseek_v32|kimi_k2|glm4_moe|glm4_moe_lite|glm4v_moe_text|glm_moe_dsa|dots1|solar_open", .num_experts = "n_routed_experts",
     .ignored_keys = "mlp_bias", .router_options = deepseek_v3_options, .selection_bias = "gate.e_score_correction_bias",
     .d_ff_shared = shared_experts, .shared = "shared_experts."},
    {.model_type = "axk1", .num_experts = "n_routed_experts", .router_options = deepseek_v3_options, .selection_bias = "gate.e_score_correction_bias",
     .d_ff_shared = shared_experts, .shared = "shared_experts.", .output_norm = "../post_mlp_layernorm.weight|post_mlp_layernorm.weight"},
    {.model_type = "axk2", .num_experts = "n_routed_experts", .router_options = axk2_options, .selection_bias = "gate.e_score_correction_bias",
     .d_ff_shared = shared_experts, .shared = "shared_experts."},
    {.model_type = "mimo_v2_flash", .num_experts = "n_routed_experts", .router_options = mimo_options,
     .selection_bias = "gate.e_score_correction_bias"},
    {.model_type = "dots3_note_text", .num_experts = "n_routed_experts", .ignored_keys = "mlp_bias", .router_options = deepseek_v3_options,
     .selection_bias = "gate.e_score_correction_bias", .d_ff_shared = dots3_shared_experts, .shared = "shared_experts."},
    {.model_type = "glm5_next_text", .num_experts = "n_routed_experts", .router_options = deepseek_v3_options,
     .selection_bias = "gate.e_score_correction_bias", .hidden = clamped_inputs, .d_ff_shared = shared_experts, .shared = "shared_experts."},
    {.model_type = "hy_v4", .num_experts = "n_routed_experts", .router_options = deepseek_v3_options,
     .selection_bias = "gate.e_score_correction_bias", .hidden = clamped_routed, .d_ff_shared = shared_experts, .shared = "shared_experts."},
    {.model_type = "bailing_hybrid|kimi_linear", .top_k = "num_experts_per_token", .router_options = deepseek_v3_options,
     .selection_bias = "gate.e_score_correction_bias|gate.expert_bias", .d_ff_shared = shared_experts_of_num, .shared = "shared_experts."},
    {.model_type = "exaone_moe", .router_options = deepseek_v3_options, .selection_bias = "e_score_correction_bias|gate.e_score_correction_bias",
     .d_ff_shared = shared_experts_of_num, .shared = "shared_experts."},
    {.model_type = "beam", .router_options = deepseek_v3_options, .selection_bias = "gate.e_score_correction_bias"},
    {.model_type = "afmoe", .router_options = afmoe_options, .router = "router.gate.weight", .selection_bias = "expert_bias",
     .d_ff_shared = shared_experts_of_num, .shared = "shared_experts."},
    {.model_type = "laguna", .router_options = laguna_options, .selection_bias = "experts.e_score_correction_bias|gate.e_score_correction_bias",
     .logit_cap = laguna_cap, .d_ff_shared = shared_expert, .shared = "shared_expert.|shared_experts."},
    {.model_type = "kolibri1", .num_experts = "num_local_experts", .router_options = kolibri_options,
     .selection_bias = "../moe.router.expert_bias|gate.e_score_correction_bias", .d_ff_shared = shared_expert, .shared = "shared_experts."},
    {.model_type = "flint", .router_options = sigmoid_maybe_renormalized, .d_ff_shared = shared_expert, .shared = "shared_expert."},
    {.model_type = "cohere2_moe", .d_ff = "intermediate_size", .router_options = cohere2_options,
     .d_ff_shared = shared_experts_as_wide, .shared = "shared_experts.", .output_scale = half_if_averaged},
    {.model_type = "mistral4", .num_experts = "n_routed_experts", .router_options = mistral4_options,
     .d_ff_shared = shared_experts, .shared = "shared_experts."},
    {.model_type = "mistral_large4_text", .num_experts = "n_routed_experts", .router_options = mistral_large4_options,
     .d_ff_shared = shared_experts, .shared = "shared_experts.", .scope = "experts.|gate.|shared_experts."},
    {.model_type = "deepseek_v4", .num_experts = "n_routed_experts", .bias = "mlp_bias", .router_options = deepseek_v4_options, .router_kind = RouterKind::hashed,
     .selection_bias = "gate.bias|gate.e_score_correction_bias", .hidden = clamped_inputs,
     .d_ff_shared = one_shared_expert, .shared = "shared_experts."},
    {.model_type = "step3p5", .num_experts = "n_routed_experts", .bias = "mlp_bias", .router_options = step_options,
     .selection_bias = "router_bias|gate.e_score_correction_bias", .experts = "experts.|", .hidden = clamped_of_layer,
     .d_ff_shared = step_shared, .shared = "../share_expert.|shared_experts."},
    {.model_type = "nemotron_h", .num_experts = "n_routed_experts", .bias = "mlp_bias", .ignored_keys = "use_bias", .router_options = deepseek_v3_options,
     .selection_bias = "gate.e_score_correction_bias", .gated = false, .activation = "mlp_hidden_act",
     .d_ff_shared = nemotron_shared, .shared = "shared_experts.",
     .d_latent = nemotron_latent, .latent_in = "fc1_latent_proj", .latent_out = "fc2_latent_proj"},
    {.model_type = "muse_spark_text", .num_experts = "num_local_experts", .router_options = muse_options,
     .selection_bias = "gate.e_score_correction_bias", .logit_scale = output_multiplier, .expert_norm = "experts.post_expert_norm.weight",
     .d_latent = muse_latent, .latent_in = "pre_expert_proj", .latent_norm = "pre_expert_norm.weight", .latent_out = "post_expert_proj"},
    {.model_type = "inkling_text", .num_experts = "n_routed_experts", .router_options = inkling_options, .router_kind = RouterKind::joint,
     .selection_bias = "gate.e_score_correction_bias", .shared = "shared_experts."},
    {.model_type = "inkling2_text", .num_experts = "n_routed_experts", .router_options = inkling2_options,
     .selection_bias = "gate.bias|gate.e_score_correction_bias", .hidden = softcapped},
    {.model_type = "gemma4_text|diffusion_gemma_text", .top_k = "top_k_experts", .router_options = softmax_renormalized,
     .router_kind = RouterKind::normed, .router = "router.proj.weight", .activation = "hidden_activation", .scope = "experts.|router."},
    {.model_type = "zaya", .router_options = softmax_top_k, .router_kind = RouterKind::carried, .router = "gate.router_mlp.out_proj.weight",
     .selection_bias = "gate.balancing_biases", .skips = true},
    {.model_type = "aria_text", .num_experts = "moe_num_experts", .top_k = "moe_topk", .d_ff = "intermediate_size", .bias = "mlp_bias",
     .router_options = softmax_of_chosen, .hidden = swiglu_routed, .d_ff_shared = aria_shared_experts, .shared = "shared_experts."},
    {.model_type = "dbrx", .d_model = "d_model", .num_experts = "ffn_config.moe_num_experts", .top_k = "ffn_config.moe_top_k",
     .d_ff = "ffn_config.ffn_hidden_size", .router_options = dbrx_options, .router = "router.weight|router.layer.weight",
     .experts = "experts.mlp.|experts.", .parameters_of_experts = "", .activation = "ffn_config.ffn_act_fn.name"},
    {.model_type = "ernie4_5_moe", .num_experts = "moe_num_experts", .top_k = "moe_k", .bias = "use_bias", .router_options = ernie_options,
     .selection_bias = "moe_statics.e_score_correction_bias|gate.moe_statics.e_score_correction_bias", .selection_bias_is_a_row = true,
     .d_ff_shared = ernie_shared_experts, .shared = "shared_experts."},
    {.model_type = "gpt_oss", .num_experts = "num_local_experts", .d_ff = "intermediate_size", .always_biased = true, .router_options = softmax_of_chosen,
     .router_bias = "router.bias", .interleaved = true, .hidden = gpt_oss_glu},
    {.model_type = "openai_privacy_filter", .num_experts = "num_local_experts", .d_ff = "intermediate_size", .always_biased = true, .router_options = softmax_of_chosen,
     .router_bias = "router.bias", .hidden = gpt_oss_glu},
    {.model_type = "granitemoe", .num_experts = "num_local_experts", .d_ff = "intermediate_size", .module = "block_sparse_moe",
     .router_options = softmax_of_chosen,
     .router = "router.layer.weight|router.weight", .experts = "experts.|"},
    {.model_type = "granitemoeshared|granitemoehybrid|granitemoe_swa", .num_experts = "num_local_experts", .d_ff = "intermediate_size",
     .router_options = softmax_of_chosen, .router = "block_sparse_moe.router.layer.weight|block_sparse_moe.router.weight",
     .experts = "block_sparse_moe.experts.|block_sparse_moe.", .d_ff_shared = shared_intermediate, .shared = "shared_mlp.",
     .scope = "block_sparse_moe.|shared_mlp."},
    {.model_type = "jetmoe", .num_experts = "num_local_experts", .d_ff = "intermediate_size", .router_options = softmax_of_chosen,
     .router = "router.weight|router.layer.weight", .experts = "experts.|", .parameters_of_experts = "input_linear.weight|output_linear.weight",
     .activation = "activation_function", .output_bias = "bias"},
    {.model_type = "phimoe", .num_experts = "num_local_experts", .top_k = "", .fixed_top_k = 2, .d_ff = "intermediate_size", .router_options = sparse_mixer_options},
    {.model_type = "longcat_flash", .num_experts = "n_routed_experts", .top_k = "moe_topk", .d_ff = "expert_ffn_hidden_size",
     .num_zero_experts = "zero_expert_num", .ignored_keys = "router_bias", .router_options = longcat_options, .router = "router.classifier.weight",
     .selection_bias = "router.e_score_correction_bias", .ignored = "router.classifier.bias"},
    {.model_type = "switch_transformers", .d_model = "d_model", .top_k = "", .d_ff = "d_ff", .ignored_keys = "router_jitter_noise", .router_options = softmax_top_k,
     .router = "router.classifier.weight", .router_bias = "router.classifier.bias", .router_bias_if = "router_bias", .capacity = switch_capacity,
     .gated = false, .parameters_of_experts = "experts.expert_#.wi.weight|experts.expert_#.wo.weight", .activation = "dense_act_fn"},
    {.model_type = "nllb-moe", .d_model = "d_model", .top_k = "", .fixed_top_k = 2, .d_ff = "encoder_ffn_dim", .d_ff_of_decoder = "decoder_ffn_dim", .always_biased = true, .router_options = nllb_options,
     .router = "router.classifier.weight", .router_bias = "router.classifier.bias", .router_bias_if = "router_bias", .capacity = nllb_capacity,
     .gated = false, .parameters_of_experts = "experts.expert_#.fc1.weight|experts.expert_#.fc2.weight", .activation = "activation_function", .output_scale = nllb_output_scale},
    {.model_type = "ernie4_5_vl_moe_text", .num_experts = "moe_num_experts", .top_k = "moe_k", .bias = "use_bias", .router_options = ernie_options,
     .router_kind = RouterKind::by_modality,
     .selection_bias = "moe_statics.e_score_correction_bias|gate.moe_statics.e_score_correction_bias", .selection_bias_is_a_row = true,
     .d_ff_shared = ernie_vl_shared_experts, .shared = "shared_experts."},
    // clang-format on
});

}  // namespace detail

namespace detail {

/// Those that users brought, which stay where they are.
struct Registered {
  std::mutex mutex;
  std::deque<Architecture> all;
};
inline Registered& registered() {
  static Registered of_users;
  return of_users;
}

inline bool has_type(const Architecture& architecture, std::string_view type) {
  return std::ranges::count(alternatives(architecture.model_type), type) > 0;
}

}  // namespace detail

/// Makes one more model type known, or another reading of a known one: the last that names a type counts. What its
/// names and functions point to must stay (text between quotation marks does). Safe to call from many threads.
/// @throws std::invalid_argument if it has no model_type or no router_options.
inline void register_architecture(const Architecture& architecture) {
  require(!architecture.model_type.empty(), "register_architecture: has no model_type");
  require(architecture.router_options != nullptr,
          "register_architecture: \"" + std::string(architecture.model_type) + "\" has no router_options");
  const std::lock_guard lock(detail::registered().mutex);
  detail::registered().all.push_back(architecture);
}

/// Every model_type whose layers load_layer() can load, in alphabetical order.
template <class BuiltAs = detail::Flags>
std::vector<std::string> model_types() {
  std::vector<std::string> types;
  const auto add = [&](const Architecture& architecture) {
    for (const std::string_view type : detail::alternatives(architecture.model_type)) types.emplace_back(type);
  };
  for (const Architecture& architecture : detail::known_architectures) add(architecture);
  const std::lock_guard lock(detail::registered().mutex);
  for (const Architecture& architecture : detail::registered().all) add(architecture);
  std::ranges::sort(types);
  types.erase(std::unique(types.begin(), types.end()), types.end());  // ranges::unique: not of clang++ 14
  return types;
}

/// Null if it is none that is known.
template <class BuiltAs = detail::Flags>
const Architecture* find_architecture(std::string_view type) {
  {
    const std::lock_guard lock(detail::registered().mutex);
    const auto& all = detail::registered().all;
    for (auto one = all.rbegin(); one != all.rend(); ++one) {
      if (detail::has_type(*one, type)) return &*one;
    }
  }
  for (const Architecture& one : detail::known_architectures) {
    if (detail::has_type(one, type)) return &one;
  }
  return nullptr;
}

/// @throws Error naming the file, all that is known, and the nearest, if the model_type is not.
template <class BuiltAs = detail::Flags>
const Architecture& architecture_of(const Config& config) {
  const std::string type = config.text("model_type");
  if (const Architecture* const found = find_architecture(type)) return *found;
  const std::vector<std::string> types = model_types();
  std::string known;
  for (const std::string& one : types) known += (known.empty() ? "" : ", ") + one;
  if (type == "doge") {
    fail(config.file(),
         ": model_type is \"doge\", whose experts are rows of an embedding that product keys retrieve: "
         "no such experts are here; expected one of ",
         known);
  }
  if (!config.mentions_experts()) {
    fail(config.file(), ": model_type is \"", type,
         "\" and no key speaks of experts: this is a dense model, without MoE layers to load; expected one of ", known);
  }
  const auto distance = [&](const std::string& one) { return detail::edit_distance(one, type); };
  const std::string& nearest = *std::ranges::min_element(types, {}, distance);
  fail(config.file(), ": model_type is \"", type, "\"",
       distance(nearest) > type.size() / 3 ? "" : " (did you mean \"" + nearest + "\"?)", ", expected one of ", known);
}

namespace detail {

/// Some models have the model_type of an elder and a router of their own. (dots1 says "noaux_tc" here.)
inline void check_score(const Config& config, Score score) {
  const std::string expected = score == Score::sigmoid ? "sigmoid" : "softmax";
  const std::string said = config.is_null("scoring_func") ? expected : config.text("scoring_func");
  if (said != expected && (said == "sigmoid" || said == "softmax")) {
    fail(config.file(), ": scoring_func is \"", said, "\", expected \"", expected, "\" of model_type \"",
         config.text("model_type"), "\"");
  }
}

inline RouterOptions router_options(const Config& config, const Architecture& architecture) {
  RouterOptions options = architecture.router_options(config);
  const bool said = *architecture.top_k != '\0';
  std::visit([&](auto& any) { any.top_k = said ? config.integer(architecture.top_k) : architecture.fixed_top_k; },
             options);
  if (auto* const top_k = std::get_if<TopKOptions>(&options)) {
    // What has no effect takes its default, so that equal routers have equal options.
    if (!top_k->renormalize) top_k->epsilon = 0;
    if (top_k->num_groups == 1) top_k->group_top = 1, top_k->rejected_groups = {};
    check_score(config, top_k->score);
  }
  return options;
}

inline HiddenActivation hidden_of(const Config& config, const Architecture& architecture, Index layer, bool shared) {
  if (architecture.hidden != nullptr) return architecture.hidden(config, layer, shared);
  if (architecture.gated) return gated_activation(config, architecture.activation);
  return plain_activation(config, architecture.activation);
}

inline bool if_said(const Config& config, std::string_view name, const char* condition) {
  return !name.empty() && (*condition == '\0' || is_set(config, condition));
}

inline Index d_ff_of(const Config& config, const Architecture& architecture) {
  if (architecture.router_kind == RouterKind::by_modality && config.is_list(architecture.d_ff)) {
    return config.integer_in_list(architecture.d_ff, 0);
  }
  return config.integer(architecture.d_ff);
}

}  // namespace detail

/// The shape of one MoE layer of a model, as its config.json has it.
/// @param layer  which, from 0, where they may differ
/// @throws Error if a setting is missing or not what it should be.
template <class BuiltAs = detail::Flags>
MoeShape moe_shape(const Config& config, const Architecture& architecture, Index layer = -1) {
  const RouterOptions options = detail::router_options(config, architecture);
  const bool biased =
      architecture.always_biased || (*architecture.bias != '\0' && detail::is_set(config, architecture.bias));
  const Index d_ff_shared = architecture.d_ff_shared ? architecture.d_ff_shared(config) : 0;
  return {.d_model = config.integer(architecture.d_model),
          .d_ff = detail::d_ff_of(config, architecture),
          .num_experts = config.integer(architecture.num_experts),
          .top_k = std::visit([](const auto& any) { return any.top_k; }, options),
          .d_latent = architecture.d_latent ? architecture.d_latent(config) : 0,
          .d_ff_shared = d_ff_shared,
          .num_zero_experts = *architecture.num_zero_experts ? config.count(architecture.num_zero_experts) : 0,
          .expert_bias = biased,
          .router_bias = detail::if_said(config, architecture.router_bias, architecture.router_bias_if),
          .selection_bias = detail::if_said(config, architecture.selection_bias, architecture.selection_bias_if),
          .shared_gate = !architecture.shared_gate.empty() && d_ff_shared > 0,
          .hidden = detail::hidden_of(config, architecture, layer, false),
          .hidden_shared = detail::hidden_of(config, architecture, layer, true),
          .router = options};
}
/// The same of the block of this name: "model.layers.3.mlp".
template <class BuiltAs = detail::Flags>
MoeShape moe_shape(const Config& config, const Architecture& architecture, const std::string& block) {
  MoeShape shape = moe_shape(config, architecture, detail::layer_number(block));
  const bool of_images = architecture.router_kind == RouterKind::by_modality && block.ends_with("vision_moe");
  if (of_images && config.is_list(architecture.d_ff)) shape.d_ff = config.integer_in_list(architecture.d_ff, 1);
  const bool of_decoder = ('.' + block + '.').find(".decoder.") != std::string::npos;
  if (of_decoder && *architecture.d_ff_of_decoder) shape.d_ff = config.integer(architecture.d_ff_of_decoder);
  return shape;
}

/// The same of the architecture that the config names.
inline MoeShape moe_shape(const Config& config) { return moe_shape(config, architecture_of(config)); }

namespace detail {

/// Keys by which some model changes what its MoE blocks compute.
inline constexpr auto keys_of_blocks = std::to_array<std::string_view>({"activation_situ_beta",
                                                                        "activation_situ_linear_beta",
                                                                        "expert_selection_fn",
                                                                        "expert_swiglu_limit_list",
                                                                        "latent_moe_use_norm",
                                                                        "mlp_bias",
                                                                        "mlp_gate_softcap",
                                                                        "mlp_up_softcap",
                                                                        "moe_apply_router_weight_on_input",
                                                                        "moe_hidden_size",
                                                                        "moe_latent_size",
                                                                        "moe_norm_min",
                                                                        "moe_num_shared_experts",
                                                                        "moe_renormalize",
                                                                        "moe_routed_scaling_factor",
                                                                        "moe_router_logit_softcapping",
                                                                        "moe_router_scaling_factor",
                                                                        "moe_shared_expert_intermediate_size",
                                                                        "n_group",
                                                                        "n_shared_experts",
                                                                        "norm_topk_prob",
                                                                        "num_expert_group",
                                                                        "num_shared_experts",
                                                                        "num_zero_experts",
                                                                        "output_multiplier",
                                                                        "route_scale",
                                                                        "routed_scaling_factor",
                                                                        "router_bias",
                                                                        "router_scaling_factor",
                                                                        "scoring_func",
                                                                        "share_expert_dim",
                                                                        "shared_expert_combination_strategy",
                                                                        "shared_expert_intermediate_size",
                                                                        "shared_intermediate_size",
                                                                        "swiglu_alpha",
                                                                        "swiglu_limit",
                                                                        "swiglu_limits",
                                                                        "swiglu_limits_shared",
                                                                        "topk_group",
                                                                        "topk_method",
                                                                        "use_bias",
                                                                        "use_expert_bias",
                                                                        "zero_expert_num"});

/// @throws Error naming a key of these that the file has, that says something, and that nothing has asked for; or a
///         transform of activations that quantised weights need.
inline void require_no_other_settings(const Config& config, const Architecture& architecture) {
  for (const std::string_view key : alternatives(architecture.ignored_keys)) config.is_null(std::string(key));
  for (const std::string& key : config.unread()) {
    if (std::ranges::count(keys_of_blocks, std::string_view(key)) == 0) continue;
    fail(config.file(), ": has \"", key, "\", which changes what MoE blocks compute, and model_type \"",
         config.text("model_type"), "\" has nothing here that reads it");
  }
  if (!config.is_null("quantization_config.transform_config")) {
    fail(config.file(),
         ": quantization_config has a transform_config: activations would have to be transformed, too, "
         "and nothing here does that; take weights without a transform");
  }
}

}  // namespace detail

#if defined(MOE_IO_COMPILED)
extern template std::vector<std::string> model_types<detail::Flags>();
extern template const Architecture* find_architecture<detail::Flags>(std::string_view);
extern template const Architecture& architecture_of<detail::Flags>(const Config&);
extern template MoeShape moe_shape<detail::Flags>(const Config&, const Architecture&, Index);
extern template MoeShape moe_shape<detail::Flags>(const Config&, const Architecture&, const std::string&);
#endif

}  // namespace moe::inline MOE_TARGET::io
