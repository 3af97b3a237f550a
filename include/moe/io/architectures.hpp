/// @file  Finds the model type that a config names, with the shapes of its layers.
#pragma once

#include <algorithm>
#include <array>
#include <deque>
#include <mutex>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "moe/core/check.hpp"
#include "moe/core/types.hpp"
#include "moe/io/architecture.hpp"
#include "moe/io/architecture_settings.hpp"
#include "moe/io/built_with.hpp"
#include "moe/io/config.hpp"
#include "moe/io/edit_distance.hpp"
#include "moe/io/error.hpp"
#include "moe/io/known_architectures.hpp"
#include "moe/models/moe_shape.hpp"
#include "moe/routers/top_k.hpp"

namespace moe::inline MOE_TARGET::io {

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

/// @throws Error naming the file and the nearest that are known, if the model_type is not.
template <class BuiltAs = detail::Flags>
const Architecture& architecture_of(const Config& config) {
  const std::string type = config.text("model_type");
  if (const Architecture* const found = find_architecture(type)) return *found;
  if (type == "doge") {
    fail(config.file(),
         ": model_type is \"doge\", whose experts are rows of an embedding that product keys retrieve: "
         "no such experts are here; expected one that docs/models.md lists");
  }
  const std::vector<std::string> types = model_types();
  const std::string nearest = detail::nearest_names(types, type, "`moe_inspect --types` and docs/models.md list them");
  if (!config.mentions_experts()) {
    fail(config.file(), ": model_type is \"", type,
         "\" and no key speaks of experts: this is a dense model, without MoE layers to load; expected one of ",
         nearest);
  }
  const std::string first = nearest.substr(0, nearest.find(','));
  fail(config.file(), ": model_type is \"", type, "\"",
       detail::edit_distance(first, type) > type.size() / 3 ? "" : " (did you mean \"" + first + "\"?)",
       ", expected one of ", nearest);
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
