/// @file  What published model types call their settings and tensors.
#pragma once

#include <array>
#include <span>
#include <string>
#include <string_view>

#include "moe/io/config.hpp"
#include "moe/io/error.hpp"
#include "moe/presets.hpp"
#include "moe/routers/linear_top_k.hpp"
#include "moe/types.hpp"

namespace moe::io {

/// How the weights of the experts lie in a checkpoint.
enum class ExpertLayout {
  separate,    ///< three tensors an expert, (out × in); or fused, (experts × out × in) with gate rows before up rows
  transposed,  ///< two tensors of all experts, (experts × in × out), gate columns before up columns
};

/// Names are relative to the MoE block; "#" stands for an expert's number.
struct Architecture {
  std::string_view model_type;
  const char* num_experts = "num_experts";  // the key of config.json; so are the next two
  const char* top_k = "num_experts_per_tok";
  const char* d_ff = "moe_intermediate_size";
  TopKOptions (*router_options)(const Config&);  // all but top_k
  std::string_view router = "gate.weight";
  std::string_view selection_bias = "";
  ExpertLayout layout = ExpertLayout::separate;
  std::string_view gate = "experts.#.gate_proj.weight";
  std::string_view up = "experts.#.up_proj.weight";
  std::string_view down = "experts.#.down_proj.weight";
  Index (*d_ff_shared)(const Config&) = nullptr;  // the width of all shared experts side by side; null for none
  std::string_view shared = "";                   // what stands before gate_proj.weight
  std::string_view shared_gate = "";
};

namespace detail {

inline TopKOptions softmax_top_k(const Config&) { return {}; }
inline TopKOptions softmax_renormalized(const Config&) { return {.renormalize = true}; }
inline TopKOptions softmax_maybe_renormalized(const Config& config) {
  return {.renormalize = config.flag("norm_topk_prob", false)};
}
inline TopKOptions qwen3_next_options(const Config& config) {
  return {.renormalize = config.flag("norm_topk_prob", true)};
}
inline TopKOptions sigmoid_on_input(const Config&) { return {.score = Score::sigmoid, .weight_on = WeightOn::input}; }
inline TopKOptions minimax_m2_options(const Config&) { return {.score = Score::sigmoid, .renormalize = true}; }
inline TopKOptions lfm2_options(const Config& config) {
  return {.score = Score::sigmoid,
          .renormalize = config.flag("norm_topk_prob", true),
          .epsilon = 1e-6,
          .scale = config.number("routed_scaling_factor", 1)};
}

/// Its own modeling_deepseek.py either renormalises or scales.
inline TopKOptions deepseek_v2_options(const Config& config) {
  TopKOptions options{.renormalize = config.flag("norm_topk_prob", false), .epsilon = 1e-20};
  if (!options.renormalize) options.scale = config.number("routed_scaling_factor", 1);
  const std::string method = config.text("topk_method", "greedy");
  if (method == "group_limited_greedy") {
    options.num_groups = config.integer("n_group");
    options.kept_groups = config.integer("topk_group");
  } else if (method != "greedy") {
    fail(config.file(), ": topk_method is \"", method, "\", expected \"greedy\" or \"group_limited_greedy\"");
  }
  return options;
}

/// DeepSeek-V3 and those that took over its router; where a key is absent each has a default of its own.
inline TopKOptions deepseek_v3_like(const Config& config, const TopKOptions& absent) {
  return {.score = Score::sigmoid,
          .renormalize = config.flag("norm_topk_prob", absent.renormalize),
          .epsilon = 1e-20,
          .scale = config.number("routed_scaling_factor", absent.scale),
          .num_groups = config.integer("n_group", absent.num_groups),
          .kept_groups = config.integer("topk_group", absent.kept_groups),
          .group_top = 2};
}
inline TopKOptions deepseek_v3_options(const Config& config) {
  return deepseek_v3_like(config, {.renormalize = true, .scale = 2.5, .num_groups = 8, .kept_groups = 4});
}
inline TopKOptions glm4_options(const Config& config) { return deepseek_v3_like(config, {.renormalize = true}); }
inline TopKOptions dots1_options(const Config& config) { return deepseek_v3_like(config, {}); }

inline Index shared_experts(const Config& config) {
  return config.integer("n_shared_experts") * config.integer("moe_intermediate_size");
}
inline Index shared_expert(const Config& config) { return config.integer("shared_expert_intermediate_size"); }
inline Index shared_as_wide_as_routed(const Config& config) { return config.integer("intermediate_size"); }

inline constexpr auto known_architectures = std::to_array<Architecture>({
    // clang-format off
    {.model_type = "mixtral", .num_experts = "num_local_experts", .d_ff = "intermediate_size", .router_options = softmax_renormalized,
     .gate = "experts.#.w1.weight", .up = "experts.#.w3.weight", .down = "experts.#.w2.weight"},
    {.model_type = "minimax", .num_experts = "num_local_experts", .d_ff = "intermediate_size", .router_options = softmax_renormalized,
     .gate = "experts.#.w1.weight", .up = "experts.#.w3.weight", .down = "experts.#.w2.weight"},
    {.model_type = "minimax_m2", .num_experts = "num_local_experts", .d_ff = "intermediate_size", .router_options = minimax_m2_options,
     .selection_bias = "e_score_correction_bias",
     .gate = "experts.#.w1.weight", .up = "experts.#.w3.weight", .down = "experts.#.w2.weight"},
    {.model_type = "lfm2_moe", .router_options = lfm2_options, .selection_bias = "expert_bias",
     .gate = "experts.#.w1.weight", .up = "experts.#.w3.weight", .down = "experts.#.w2.weight"},
    {.model_type = "qwen2_moe", .router_options = softmax_maybe_renormalized,
     .d_ff_shared = shared_expert, .shared = "shared_expert.", .shared_gate = "shared_expert_gate.weight"},
    {.model_type = "qwen3_moe", .router_options = softmax_maybe_renormalized},
    {.model_type = "qwen3_next", .router_options = qwen3_next_options,
     .d_ff_shared = shared_expert, .shared = "shared_expert.", .shared_gate = "shared_expert_gate.weight"},
    {.model_type = "olmoe", .d_ff = "intermediate_size", .router_options = softmax_maybe_renormalized},
    {.model_type = "flex_olmo", .d_ff = "intermediate_size", .router_options = softmax_maybe_renormalized},
    {.model_type = "jamba", .d_ff = "intermediate_size", .router_options = softmax_top_k, .router = "router.weight"},
    {.model_type = "hunyuan_v1_moe", .top_k = "moe_topk", .d_ff = "intermediate_size", .router_options = softmax_renormalized,
     .router = "gate.wg.weight", .d_ff_shared = shared_as_wide_as_routed, .shared = "shared_mlp."},
    {.model_type = "llama4_text", .num_experts = "num_local_experts", .d_ff = "intermediate_size", .router_options = sigmoid_on_input,
     .router = "router.weight", .layout = ExpertLayout::transposed,
     .d_ff_shared = shared_as_wide_as_routed, .shared = "shared_expert."},
    {.model_type = "deepseek", .num_experts = "n_routed_experts", .router_options = softmax_maybe_renormalized,
     .d_ff_shared = shared_experts, .shared = "shared_experts."},
    {.model_type = "deepseek_v2", .num_experts = "n_routed_experts", .router_options = deepseek_v2_options,
     .d_ff_shared = shared_experts, .shared = "shared_experts."},
    {.model_type = "deepseek_v3", .num_experts = "n_routed_experts", .router_options = deepseek_v3_options,
     .selection_bias = "gate.e_score_correction_bias", .d_ff_shared = shared_experts, .shared = "shared_experts."},
    {.model_type = "kimi_k2", .num_experts = "n_routed_experts", .router_options = deepseek_v3_options,
     .selection_bias = "gate.e_score_correction_bias", .d_ff_shared = shared_experts, .shared = "shared_experts."},
    {.model_type = "glm4_moe", .num_experts = "n_routed_experts", .router_options = glm4_options,
     .selection_bias = "gate.e_score_correction_bias", .d_ff_shared = shared_experts, .shared = "shared_experts."},
    {.model_type = "dots1", .num_experts = "n_routed_experts", .router_options = dots1_options,
     .selection_bias = "gate.e_score_correction_bias", .d_ff_shared = shared_experts, .shared = "shared_experts."},
    // clang-format on
});

}  // namespace detail

/// Every model_type whose layers load_layer() can load.
inline std::span<const Architecture> architectures() { return detail::known_architectures; }

/// @throws Error naming the file and all that is known, if the model_type is not.
inline const Architecture& architecture_of(const Config& config) {
  const std::string type = config.text("model_type");
  std::string known;
  for (const Architecture& architecture : architectures()) {
    if (architecture.model_type == type) return architecture;
    known += (known.empty() ? "" : ", ") + std::string(architecture.model_type);
  }
  fail(config.file(), ": model_type is \"", type, "\", expected one of ", known);
}

namespace detail {

inline void check_activation(const Config& config) {
  if (const std::string act = config.text("hidden_act", "silu"); act != "silu") {
    fail(config.file(), ": hidden_act is \"", act, "\", expected \"silu\"");
  }
}

/// Some models have the model_type of an elder and a router of their own. (dots1 says "noaux_tc" here.)
inline void check_score(const Config& config, Score score) {
  const std::string expected = score == Score::sigmoid ? "sigmoid" : "softmax";
  const std::string said = config.text("scoring_func", expected);
  if (said != expected && (said == "sigmoid" || said == "softmax")) {
    fail(config.file(), ": scoring_func is \"", said, "\", expected \"", expected, "\" of model_type \"",
         config.text("model_type"), "\"");
  }
}

inline TopKOptions router_options(const Config& config, const Architecture& architecture) {
  TopKOptions options = architecture.router_options(config);
  options.top_k = config.integer(architecture.top_k);
  // What has no effect takes its default, so that equal routers have equal options.
  if (!options.renormalize) options.epsilon = 0;
  if (options.num_groups == 1) options.group_top = 1;
  return options;
}

}  // namespace detail

/// The shape of a model's MoE layers, as its config.json has it.
/// @throws Error if a setting is missing or not what it should be.
inline MoeShape moe_shape(const Config& config) {
  const Architecture& architecture = architecture_of(config);
  const TopKOptions options = detail::router_options(config, architecture);
  detail::check_activation(config);
  detail::check_score(config, options.score);
  return {.d_model = config.integer("hidden_size"),
          .d_ff = config.integer(architecture.d_ff),
          .num_experts = config.integer(architecture.num_experts),
          .top_k = options.top_k,
          .d_ff_shared = architecture.d_ff_shared ? architecture.d_ff_shared(config) : 0,
          .selection_bias = !architecture.selection_bias.empty(),
          .shared_gate = !architecture.shared_gate.empty(),
          .router = options};
}

}  // namespace moe::io
