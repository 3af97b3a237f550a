/// @file  What published model types call their settings and tensors.
#pragma once

#include <algorithm>
#include <array>
#include <limits>
#include <span>
#include <string>
#include <string_view>
#include <variant>

#include "moe/core/types.hpp"
#include "moe/io/config.hpp"
#include "moe/io/edit_distance.hpp"
#include "moe/io/error.hpp"
#include "moe/models/moe_shape.hpp"
#include "moe/routers/filters/capacity.hpp"
#include "moe/routers/sparse_mixer.hpp"
#include "moe/routers/top_k.hpp"

namespace moe::inline MOE_TARGET::io {

/// How the weights of the experts lie in a checkpoint.
enum class ExpertLayout {
  separate,     ///< gate, up, down: three tensors an expert, (out × in); or fused
  fused,        ///< two tensors of all experts, (experts × out × in), gate rows before up rows
  transposed,   ///< two of all experts, (experts × in × out), gate columns before up columns
  interleaved,  ///< the same, but gate and up columns alternate, and there are biases; or 4-bit, out before in
  stacked,  ///< gate, up, down: three of all experts, (experts · d_ff × d_model), down as it is multiplied from behind
  plain,    ///< no gate; up and down: two tensors an expert, (out × in), and maybe two biases
};

/// Names are relative to the MoE block; "#" stands for an expert's number. An empty name is none.
struct Architecture {
  std::string_view model_type;
  const char* d_model = "hidden_size";  // the key of config.json; so are the next
  const char* num_experts = "num_experts";
  const char* top_k = "num_experts_per_tok";  // where there is none, `fixed_top_k` counts
  const char* d_ff = "moe_intermediate_size";
  const char* num_zero_experts = "";
  const char* activation = "hidden_act";
  Index fixed_top_k = 1;
  RouterOptions (*router_options)(const Config&);  // all but top_k
  std::string_view router = "gate.weight";
  std::string_view router_bias = "";
  std::string_view selection_bias = "";
  bool selection_bias_is_a_row = false;  // stored (1 × experts)
  ExpertLayout layout = ExpertLayout::separate;
  Hidden hidden = Hidden::swiglu;
  std::string_view gate = "experts.#.gate_proj.weight";
  std::string_view up = "experts.#.up_proj.weight";
  std::string_view down = "experts.#.down_proj.weight";
  std::string_view up_bias = "";
  std::string_view down_bias = "";
  std::string_view fused_gate_up = "experts.gate_up_proj";
  std::string_view fused_down = "experts.down_proj";
  Index (*d_ff_shared)(const Config&) = nullptr;  // the width of all shared experts side by side; null for none
  std::string_view shared = "";                   // what stands before gate_proj.weight
  std::string_view shared_gate = "";
  std::string_view output_bias = "";
  double (*output_scale)(const Config&) = nullptr;       // of the whole layer; null for 1
  CapacityOptions (*capacity)(const Config&) = nullptr;  // null for no limit
};

namespace detail {

inline RouterOptions softmax_top_k(const Config&) { return TopKOptions{}; }
inline RouterOptions softmax_renormalized(const Config&) { return TopKOptions{.renormalize = true}; }
inline RouterOptions softmax_of_chosen(const Config&) { return TopKOptions{.score = Score::softmax_of_chosen}; }
inline RouterOptions softmax_maybe_renormalized(const Config& config) {
  return TopKOptions{.renormalize = config.flag("norm_topk_prob", false)};
}
inline RouterOptions qwen3_next_options(const Config& config) {
  return TopKOptions{.renormalize = config.flag("norm_topk_prob", true)};
}
inline RouterOptions sigmoid_on_input(const Config&) {
  return TopKOptions{.score = Score::sigmoid, .weight_on = WeightOn::input};
}
inline RouterOptions minimax_m2_options(const Config&) {
  return TopKOptions{.score = Score::sigmoid, .renormalize = true};
}
inline RouterOptions lfm2_options(const Config& config) {
  return TopKOptions{.score = Score::sigmoid,
                     .renormalize = config.flag("norm_topk_prob", true),
                     .epsilon = 1e-6,
                     .scale = config.number("routed_scaling_factor", 1)};
}

/// Its own modeling_deepseek.py either renormalises or scales.
inline RouterOptions deepseek_v2_options(const Config& config) {
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
inline RouterOptions deepseek_v3_options(const Config& config) {
  return deepseek_v3_like(config, {.renormalize = true, .scale = 2.5, .num_groups = 8, .kept_groups = 4});
}
inline RouterOptions glm4_options(const Config& config) { return deepseek_v3_like(config, {.renormalize = true}); }
inline RouterOptions dots1_options(const Config& config) { return deepseek_v3_like(config, {}); }

/// The p of its norm; null for no normalisation.
inline RouterOptions dbrx_options(const Config& config) {
  TopKOptions options;
  options.norm = config.number("ffn_config.moe_normalize_expert_weights", 0);
  options.renormalize = options.norm != 0;
  if (!options.renormalize) options.norm = 1;
  return options;
}
inline RouterOptions ernie_options(const Config& config) {
  return TopKOptions{.renormalize = true, .floor = config.number("moe_norm_min", 1e-12)};
}
inline RouterOptions longcat_options(const Config& config) {
  return TopKOptions{.scale = config.number("routed_scaling_factor", 1)};
}
inline RouterOptions sparse_mixer_options(const Config& config) {
  return SparseMixerOptions{.jitter = config.number("router_jitter_noise", 0.01)};
}

/// The smallest difference that float sees at 1: below this the sum of two probabilities counts as this.
inline constexpr double nllb_floor = std::numeric_limits<float>::epsilon();

inline RouterOptions nllb_options(const Config& config) {
  if (const auto policy = config.text("second_expert_policy", "all"); policy != "all") {
    fail(config.file(), ": second_expert_policy is \"", policy, "\", expected \"all\"");
  }
  TopKOptions options{.renormalize = config.flag("normalize_router_prob_before_dropping", false)};
  if (options.renormalize) options.floor = nllb_floor;
  return options;
}
inline CapacityOptions nllb_capacity(const Config& config) {
  return {.capacity = capacity_fraction(config.number("moe_eval_capacity_token_fraction", 1)),
          .priority = config.flag("batch_prioritized_routing", false) ? Priority::batch : Priority::choice,
          .renormalize = !config.flag("normalize_router_prob_before_dropping", false),
          .floor = nllb_floor};
}
inline double nllb_output_scale(const Config& config) { return 1 - config.number("moe_token_dropout", 0.2); }

inline CapacityOptions switch_capacity(const Config& config) {
  return {.capacity = fixed_capacity(config.integer("expert_capacity", 64)),
          .priority = Priority::position,
          .per_sequence = true};
}

inline Index shared_experts(const Config& config) {
  return config.integer("n_shared_experts") * config.integer("moe_intermediate_size");
}
inline Index shared_expert(const Config& config) { return config.integer("shared_expert_intermediate_size"); }
inline Index ernie_shared_experts(const Config& config) {
  return config.integer("moe_num_shared_experts") * config.integer("moe_intermediate_size");
}
inline Index granite_shared(const Config& config) { return config.integer("shared_intermediate_size"); }
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
    {.model_type = "dbrx", .d_model = "d_model", .num_experts = "ffn_config.moe_num_experts", .top_k = "ffn_config.moe_top_k",
     .d_ff = "ffn_config.ffn_hidden_size", .activation = "ffn_config.ffn_act_fn.name", .router_options = dbrx_options,
     .router = "router.layer.weight", .layout = ExpertLayout::stacked,
     .gate = "experts.mlp.w1", .up = "experts.mlp.v1", .down = "experts.mlp.w2"},
    {.model_type = "ernie4_5_moe", .num_experts = "moe_num_experts", .top_k = "moe_k", .router_options = ernie_options,
     .selection_bias = "moe_statics.e_score_correction_bias",
     .selection_bias_is_a_row = true, .d_ff_shared = ernie_shared_experts, .shared = "shared_experts."},
    {.model_type = "gpt_oss", .num_experts = "num_local_experts", .d_ff = "intermediate_size", .router_options = softmax_of_chosen,
     .router = "router.weight", .router_bias = "router.bias", .layout = ExpertLayout::interleaved, .hidden = Hidden::gpt_oss,
     .up_bias = "experts.gate_up_proj_bias", .down_bias = "experts.down_proj_bias"},
    {.model_type = "granitemoe", .num_experts = "num_local_experts", .d_ff = "intermediate_size", .router_options = softmax_of_chosen,
     .router = "router.layer.weight", .layout = ExpertLayout::fused,
     .fused_gate_up = "input_linear.weight", .fused_down = "output_linear.weight"},
    {.model_type = "granitemoeshared", .num_experts = "num_local_experts", .d_ff = "intermediate_size", .router_options = softmax_of_chosen,
     .router = "block_sparse_moe.router.layer.weight", .layout = ExpertLayout::fused,
     .fused_gate_up = "block_sparse_moe.input_linear.weight", .fused_down = "block_sparse_moe.output_linear.weight",
     .d_ff_shared = granite_shared, .shared = "shared_mlp."},
    {.model_type = "jetmoe", .num_experts = "num_local_experts", .d_ff = "intermediate_size", .activation = "activation_function",
     .router_options = softmax_of_chosen, .router = "router.layer.weight", .layout = ExpertLayout::fused,
     .fused_gate_up = "input_linear.weight", .fused_down = "output_linear.weight", .output_bias = "bias"},
    {.model_type = "phimoe", .num_experts = "num_local_experts", .d_ff = "intermediate_size", .router_options = sparse_mixer_options,
     .gate = "experts.#.w1.weight", .up = "experts.#.w3.weight", .down = "experts.#.w2.weight"},
    {.model_type = "longcat_flash", .num_experts = "n_routed_experts", .top_k = "moe_topk", .d_ff = "expert_ffn_hidden_size",
     .num_zero_experts = "zero_expert_num", .router_options = longcat_options, .router = "router.classifier.weight",
     .selection_bias = "router.e_score_correction_bias"},
    {.model_type = "switch_transformers", .d_model = "d_model", .top_k = "", .d_ff = "d_ff", .activation = "dense_act_fn",
     .router_options = softmax_top_k, .router = "router.classifier.weight", .layout = ExpertLayout::plain, .hidden = Hidden::relu,
     .up = "experts.expert_#.wi.weight", .down = "experts.expert_#.wo.weight", .capacity = switch_capacity},
    {.model_type = "nllb-moe", .d_model = "d_model", .top_k = "", .d_ff = "encoder_ffn_dim", .activation = "activation_function",
     .fixed_top_k = 2, .router_options = nllb_options, .router = "router.classifier.weight", .layout = ExpertLayout::plain, .hidden = Hidden::relu,
     .up = "experts.expert_#.fc1.weight", .down = "experts.expert_#.fc2.weight",
     .up_bias = "experts.expert_#.fc1.bias", .down_bias = "experts.expert_#.fc2.bias",
     .output_scale = nllb_output_scale, .capacity = nllb_capacity},
    // clang-format on
});

}  // namespace detail

/// Every model_type whose layers load_layer() can load.
inline std::span<const Architecture> architectures() { return detail::known_architectures; }

/// @throws Error naming the file, all that is known, and the nearest, if the model_type is not.
inline const Architecture& architecture_of(const Config& config) {
  const std::string type = config.text("model_type");
  std::string known;
  for (const Architecture& architecture : architectures()) {
    if (architecture.model_type == type) return architecture;
    known += (known.empty() ? "" : ", ") + std::string(architecture.model_type);
  }
  if (!config.mentions_experts()) {
    fail(config.file(), ": model_type is \"", type,
         "\" and no key speaks of experts: this is a dense model, without MoE layers to load; expected one of ", known);
  }
  const auto distance = [&](const Architecture& one) { return detail::edit_distance(one.model_type, type); };
  const Architecture& nearest = *std::ranges::min_element(architectures(), {}, distance);
  fail(config.file(), ": model_type is \"", type, "\", expected one of ", known,
       distance(nearest) > type.size() / 3 ? "" : "; did you mean \"" + std::string(nearest.model_type) + "\"?");
}

namespace detail {

inline void check_activation(const Config& config, const Architecture& architecture) {
  const std::string expected = architecture.hidden == Hidden::relu ? "relu" : "silu";
  if (const std::string act = config.text(architecture.activation, expected); act != expected) {
    fail(config.file(), ": ", architecture.activation, " is \"", act, "\", expected \"", expected, "\"");
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

inline RouterOptions router_options(const Config& config, const Architecture& architecture) {
  RouterOptions options = architecture.router_options(config);
  const bool said = *architecture.top_k != '\0';
  std::visit([&](auto& any) { any.top_k = said ? config.integer(architecture.top_k) : architecture.fixed_top_k; },
             options);
  if (auto* const top_k = std::get_if<TopKOptions>(&options)) {
    // What has no effect takes its default, so that equal routers have equal options.
    if (!top_k->renormalize) top_k->epsilon = 0;
    if (top_k->num_groups == 1) top_k->group_top = 1;
    check_score(config, top_k->score);
  }
  return options;
}

}  // namespace detail

/// The shape of a model's MoE layers, as its config.json has it.
/// @throws Error if a setting is missing or not what it should be.
inline MoeShape moe_shape(const Config& config) {
  const Architecture& architecture = architecture_of(config);
  const RouterOptions options = detail::router_options(config, architecture);
  detail::check_activation(config, architecture);
  return {.d_model = config.integer(architecture.d_model),
          .d_ff = config.integer(architecture.d_ff),
          .num_experts = config.integer(architecture.num_experts),
          .top_k = std::visit([](const auto& any) { return any.top_k; }, options),
          .d_ff_shared = architecture.d_ff_shared ? architecture.d_ff_shared(config) : 0,
          .num_zero_experts = *architecture.num_zero_experts ? config.integer(architecture.num_zero_experts, 0) : 0,
          .expert_bias = !architecture.down_bias.empty(),
          .router_bias = !architecture.router_bias.empty(),
          .selection_bias = !architecture.selection_bias.empty(),
          .shared_gate = !architecture.shared_gate.empty(),
          .hidden = architecture.hidden,
          .router = options};
}

}  // namespace moe::inline MOE_TARGET::io
