/// @file  What a model type calls the settings and tensors of its MoE blocks, and which parts they are made of.
#pragma once

#include <algorithm>
#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

#include "moe/core/types.hpp"
#include "moe/experts/any_activation.hpp"
#include "moe/io/config.hpp"
#include "moe/models/moe_shape.hpp"
#include "moe/routers/filters/capacity.hpp"

namespace moe::inline MOE_TARGET::io {

/// What computes the logits, and chooses by them.
enum class RouterKind {
  linear,       ///< LinearTopK, or SparseMixer where the options are its own
  normed,       ///< NormedTopK: Gemma 4. It reads SideInputs::router_input
  hashed,       ///< TokenHash in those layers that have a table, else LinearTopK: DeepSeek-V4
  carried,      ///< MlpTopK, which hears the router of the layer before: ZAYA
  by_modality,  ///< a LinearTopK for tokens of text, another for those of images: ERNIE 4.5 VL
  joint,        ///< LinearTopK that also weighs shared experts, which every token sees: Inkling
};

/// Everything that load_layer() has to know of a model type. Names of tensors are relative to the MoE block; "../" is
/// what lies beside it, "#" an expert's number. Several names with "|" between are those that different writers use, an
/// empty one is none. Keys are those of config.json, where "ffn_config.moe_top_k" is moe_top_k of the object
/// ffn_config.
///
/// Experts are found by themselves, under the names and in the layouts of expert_tensors.hpp, below `experts`.
struct Architecture {
  std::string_view model_type;  // or several, alike in all but the defaults of their keys

  // Keys.
  const char* d_model = "hidden_size";
  const char* num_experts = "num_experts";
  const char* top_k = "num_experts_per_tok";  // where there is none, `fixed_top_k` counts
  Index fixed_top_k = 1;
  const char* d_ff = "moe_intermediate_size";
  const char* d_ff_of_decoder = "";  // that of blocks below "decoder.", where it may be another
  const char* num_zero_experts = "";
  const char* bias = "";  // says whether FFNs have biases
  bool always_biased = false;
  /// Keys that change the mathematics elsewhere, and nothing here.
  std::string_view ignored_keys = "";

  /// What transformers calls a block that files call block_sparse_moe, moe or ffn, if not mlp.
  std::string_view module = "";

  // The router.
  RouterOptions (*router_options)(const Config&) = nullptr;  // all but top_k
  RouterKind router_kind = RouterKind::linear;
  bool early_router = false;  // it reads what the layer got, before attention, by SideInputs::router_input
  std::string_view router = "gate.weight|router.weight";
  std::string_view router_bias = "";
  const char* router_bias_if = "";  // a flag that says whether there is one; where there is none, always
  std::string_view selection_bias = "";
  const char* selection_bias_if = "";
  bool selection_bias_is_a_row = false;            // stored (1 × experts)
  double (*logit_scale)(const Config&) = nullptr;  // null for 1
  double (*logit_cap)(const Config&) = nullptr;    // null, or 0, for none
  CapacityOptions (*capacity)(const Config&) = nullptr;

  // Experts.
  std::string_view experts = "experts.|switch_mlp.";
  bool gated = true;
  bool interleaved = false;  // gate and up rows alternate where they are fused
  /// Of the fused weights PEFT's A is on the side of outputs: they are stored (experts × in × out), and it does not
  /// know.
  bool turned_adapters = false;
  /// What transformers calls the parameters of experts, gate and up before down: those of the module of all experts, or
  /// if there is a dot in it, of another one of the block; empty if they are none that adapters are written beside.
  std::string_view parameters_of_experts = "gate_up_proj|down_proj";
  const char* activation = "hidden_act";
  /// null for the one that `activation` names. `shared` asks for that of shared experts and dense FFNs.
  HiddenActivation (*hidden)(const Config&, Index layer, bool shared) = nullptr;
  std::string_view expert_norm = "";  // of each expert's answer
  bool skips = false;                 // one more choice, after all experts, is to skip the layer

  // The shared expert: the width of all side by side, or null for none; and what stands before gate_proj.
  Index (*d_ff_shared)(const Config&) = nullptr;
  std::string_view shared = "";
  std::string_view shared_gate = "";

  // What stands around.
  Index (*d_latent)(const Config&) = nullptr;  // null, or 0, for none
  std::string_view latent_in = "", latent_norm = "", latent_out = "";
  std::string_view norm_of_answers = "";  // of what a token's experts answer together, before latent_out
  std::string_view output_bias = "";
  double (*output_scale)(const Config&) = nullptr;  // of the whole layer; null for 1
  std::string_view output_norm = "";

  // Strictness.
  /// Where a block is a decoder layer, which holds other things: what its own tensors begin with.
  std::string_view scope = "";
  /// Tensors that files hold and the model's own code does not use.
  std::string_view ignored = "";

  /// That of transformers, where files have other names: of GGUF, which adapters are never trained beside. Else null.
  const Architecture* of_adapters = nullptr;
};

namespace detail {

/// The names between "|"; one that is empty, if there is nothing.
inline std::vector<std::string_view> alternatives(std::string_view names) {
  std::vector<std::string_view> all;
  for (std::size_t bar = 0; (bar = names.find('|')) != names.npos; names.remove_prefix(bar + 1)) {
    all.push_back(names.substr(0, bar));
  }
  all.push_back(names);
  return all;
}

/// The number of the layer that a block belongs to, −1 if its name has none: 3 of "model.layers.3.mlp".
inline Index layer_number(std::string_view block) {
  Index number = -1;
  for (std::size_t first = 0; first < block.size();) {
    const std::size_t dot = std::min(block.find('.', first), block.size());
    const std::string_view part = block.substr(first, dot - first);
    if (!part.empty() && part.size() < 9 && part.find_first_not_of("0123456789") == part.npos && number < 0) {
      number = std::stol(std::string(part));
    }
    first = dot + 1;
  }
  return number;
}

}  // namespace detail

}  // namespace moe::inline MOE_TARGET::io
