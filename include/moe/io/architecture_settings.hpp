/// @file  What model types mean by the settings of their MoE blocks.
#pragma once

#include <algorithm>
#include <limits>
#include <string>
#include <vector>

#include "moe/core/types.hpp"
#include "moe/experts/any_activation.hpp"
#include "moe/io/architecture.hpp"
#include "moe/io/config.hpp"
#include "moe/io/error.hpp"
#include "moe/models/moe_shape.hpp"
#include "moe/routers/filters/capacity.hpp"
#include "moe/routers/sparse_mixer.hpp"
#include "moe/routers/top_k.hpp"

namespace moe::inline MOE_TARGET::io::detail {

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

/// Of classes that have one shared expert, as wide as another key says: the number is said all the same.
/// @throws Error if it is more than one.
inline void require_one_shared(const Config& config) {
  for (const char* const key : {"n_shared_experts", "num_shared_experts"}) {
    if (config.is_null(key) || config.count(key) <= 1) continue;
    fail(config.file(), ": ", key, " is ", config.count(key), ", expected 1: model_type \"", config.text("model_type"),
         "\" has one shared expert, whose width another key says");
  }
}
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
inline Index width_of_one_shared(const Config& config, const char* key) {
  require_one_shared(config);
  return config.count(key);
}
inline Index shared_expert(const Config& config) {
  return width_of_one_shared(config, "shared_expert_intermediate_size");
}
inline Index ernie_shared_experts(const Config& config) {
  return config.count("moe_num_shared_experts") * config.integer("moe_intermediate_size");
}
inline Index ernie_vl_shared_experts(const Config& config) {
  return config.count("moe_num_shared_experts") * config.integer_in_list("moe_intermediate_size", 0);
}
inline Index aria_shared_experts(const Config& config) {
  return config.count("moe_num_shared_experts") * config.integer("intermediate_size");
}
inline Index shared_intermediate(const Config& config) {
  return width_of_one_shared(config, "shared_intermediate_size");
}
inline Index shared_as_wide_as_routed(const Config& config) {
  require_one_shared(config);
  return config.integer("intermediate_size");
}
inline Index one_shared_expert(const Config& config) {
  require_one_shared(config);
  return config.integer("moe_intermediate_size");
}
inline Index step_shared(const Config& config) { return width_of_one_shared(config, "share_expert_dim"); }
inline Index nemotron_shared(const Config& config) {
  return width_of_one_shared(config, "moe_shared_expert_intermediate_size");
}
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

}  // namespace moe::inline MOE_TARGET::io::detail
