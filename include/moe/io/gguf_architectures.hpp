/// @file  Makes a model of the keys and tensors that llama.cpp's architectures have.
///
/// A GGUF file becomes a model here: a Config as transformers would have it, an Architecture whose names are those of
/// the file, and its tensors. A block is called "blk.3".
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include "moe/core/types.hpp"
#include "moe/io/architecture.hpp"
#include "moe/io/architecture_settings.hpp"
#include "moe/io/architectures.hpp"
#include "moe/io/built_with.hpp"
#include "moe/io/config.hpp"
#include "moe/io/error.hpp"
#include "moe/io/gguf.hpp"
#include "moe/io/gguf_blocks.hpp"
#include "moe/io/gguf_keys.hpp"
#include "moe/io/gguf_scales.hpp"
#include "moe/io/known_gguf_architectures.hpp"
#include "moe/io/safetensors.hpp"
#include "moe/io/tensor.hpp"
#include "moe/kernels/lanes.hpp"
#include "moe/models/moe_shape.hpp"
#include "moe/routers/top_k.hpp"

namespace moe::inline MOE_TARGET::io {

namespace detail {

/// Sets "ffn_config.moe_top_k" to a value within "ffn_config".
inline void set_key(nlohmann::json& config, std::string_view key, const nlohmann::json& value) {
  const std::size_t dot = key.find('.');
  if (dot == key.npos) {
    config[std::string(key)] = value;
  } else {
    set_key(config[std::string(key.substr(0, dot))], key.substr(dot + 1), value);
  }
}

/// What config() below says of the router.
inline RouterOptions gguf_router(const Config& config) {
  const std::string score = one_of(config, "scoring_func", {"softmax", "sigmoid", "softmax_of_chosen", "sqrtsoftplus"});
  TopKOptions options{.score = score == "softmax"             ? Score::softmax
                               : score == "sigmoid"           ? Score::sigmoid
                               : score == "softmax_of_chosen" ? Score::softmax_of_chosen
                                                              : Score::sqrt_softplus,
                      .renormalize = config.flag("norm_topk_prob"),
                      .epsilon = config.number("epsilon_of_weights"),
                      .floor = config.number("floor_of_weights"),
                      .scale = config.number("routed_scaling_factor"),
                      .num_groups = config.integer("n_group"),
                      .kept_groups = config.integer("topk_group")};
  options.group_top = config.text("topk_method", "") == "group_limited_greedy" ? 1 : 2;
  return options;
}

inline Index gguf_shared(const Config& config) { return config.count("shared_expert_intermediate_size"); }
inline double gguf_cap(const Config& config) { return config.number("router_logit_softcapping"); }

/// @throws Error naming those that are known, if the file's is none of them.
inline const GgufArchitecture& row_of(const GgufMetadata& metadata, const std::string& file) {
  const GgufValue* const value = find_key(metadata, "general.architecture");
  if (value == nullptr || value->type != GgufType::text) fail(file, ": has no text at key \"general.architecture\"");
  const std::string name = to_json(*value).get<std::string>();
  const auto* const found = std::ranges::find(gguf_architectures, name, &GgufArchitecture::name);
  if (found != gguf_architectures.end()) return *found;
  const bool is_dense = find_key(metadata, name + ".expert_count") == nullptr;
  std::string known;
  for (const GgufArchitecture& one : gguf_architectures) {
    if (!one.refused) known += (known.empty() ? "" : ", ") + std::string(one.name);
  }
  fail(file, ": general.architecture is \"", name, "\"",
       is_dense ? " and no key counts experts: this is a dense model" : "", ", expected one of ", known);
}

/// From a file's keys and tensors to a Config and an Architecture.
template <class BuiltAs>
class GgufTranslation {
 public:
  /// @throws Error if there are no experts, or the architecture is one that is not read, or blocks are not as many as
  ///         the file says.
  GgufTranslation(const GgufFile& file, const std::string& name)
      : row_(row_of(file.metadata, name)),
        keys_(file.metadata, std::string(row_.name), name),
        blocks_(blocks_of(file.tensors)) {
    if (row_.refused) fail(name, ": general.architecture is \"", row_.name, "\", which is not read: ", row_.refused);
    require_all_blocks(file.tensors);
    if (!blocks_.ends.empty()) return;
    const bool are_separate = std::ranges::any_of(
        file.tensors, [](const Tensor& tensor) { return end_in_layer(tensor.name) == "ffn_down.0.weight"; });
    fail(name, ": no tensor is called \"blk.*.ffn_down_exps.weight\"",
         are_separate ? ", for each expert has tensors of its own, as until April 2024: convert the model anew"
                      : ": there are no MoE layers to load");
  }

  std::string model_type() const {
    if (row_.name != "deepseek2") return std::string(row_.model_type);
    return gating() == Gating::softmax && !has_selection_bias() ? "deepseek_v2" : "deepseek_v3";
  }

  /// The model type's own, by the names and with the parts that the file has.
  Architecture architecture() const {
    const Architecture* const known = find_architecture(model_type());
    static constexpr Architecture usual{.model_type = ""};
    Architecture of = known ? *known : of_row();
    of.of_adapters = known ? known : &usual;
    of.bias = "";
    of.always_biased = blocks_.have("ffn_down_exps.bias");
    if (!row_.own_router) of.router_options = gguf_router;
    of.router = "ffn_gate_inp.weight";
    of.router_bias = blocks_.have("ffn_gate_inp.bias") ? "ffn_gate_inp.bias" : "";
    of.router_bias_if = "";
    of.selection_bias = has_selection_bias() ? "exp_probs_b.bias" : "";
    of.selection_bias_if = "";
    of.selection_bias_is_a_row = false;
    of.logit_cap = cap() > 0 ? gguf_cap : nullptr;
    of.experts = "";
    of.interleaved = false;
    of.turned_adapters = false;
    if (row_.clamp == Clamp::one && limit_of_experts() == 0) of.hidden = nullptr;
    of.d_ff_shared = gguf_shared;
    of.shared = "";
    of.shared_gate = blocks_.have("ffn_gate_inp_shexp.weight") ? "ffn_gate_inp_shexp.weight" : "";
    of.latent_in = "ffn_latent_down|ffn_routed_down";
    of.latent_out = "ffn_latent_up|ffn_routed_up";
    of.norm_of_answers = blocks_.have("ffn_routed_norm.weight") ? "ffn_routed_norm.weight" : "";
    of.output_scale = row_.output_scale;
    of.scope = "ffn_|exp_probs_b|router.|gate.";
    static const std::string usual_ones = "ffn_norm.weight|ffn_norm.bias|" + std::string(scales_beside_weights),
                             of_dense = usual_ones + "|ffn_norm_exps.weight|ffn_gate.weight|ffn_up.weight|" +
                                        "ffn_down.weight|ffn_gate_inp.scale",  // read as router.scale
        of_hashed = usual_ones + "|ffn_gate_tid2eid.weight";                   // read as gate.tid2eid
    of.ignored = row_.dense_beside ? of_dense : of.router_kind == RouterKind::hashed ? of_hashed : usual_ones;
    return of;
  }

  /// As transformers would write it, as far as blocks read it.
  /// @throws Error naming the key, if one is missing, or says what the model type cannot.
  Config config(const Architecture& names) const {
    nlohmann::json config = {{"model_type", model_type()}};
    set_key(config, names.d_model, must_count("embedding_length"));
    set_key(config, names.num_experts, must_count("expert_count"));
    set_key(config, names.top_k, must_count("expert_used_count"));
    const Index d_ff = keys_.count("expert_feed_forward_length").value_or(0);
    set_key(config, names.d_ff, d_ff > 0 ? d_ff : blocks_.d_ff);
    set_key(config, names.activation, row_.activation);
    config["hidden_act"] = row_.activation;
    config["shared_expert_intermediate_size"] = d_ff_shared();
    if (const auto epsilon = keys_.number("attention.layer_norm_rms_epsilon")) config["rms_norm_eps"] = *epsilon;
    for (const char* const key : {"moe_latent_size", "expert_latent_length"}) {
      if (const auto latent = keys_.count(key)) config["moe_latent_size"] = *latent;
    }
    if (row_.hidden == softcapped) {
      config["mlp_gate_softcap"] = must_be_number("activation.situ_beta");
      config["mlp_up_softcap"] = std::max(must_be_number("activation.situ_linear_beta"), 0.0);
    }
    if (cap() > 0) config["router_logit_softcapping"] = cap();
    add_limits(config);
    add_router(config);
    keys_.ignore("moe_every_n_layers");
    keys_.require_all_read();
    return {std::move(config), keys_.file()};
  }

  /// By the file's names; and what the loader asks for by another, by that, too.
  std::vector<Tensor> tensors(std::vector<Tensor> all) const {
    std::vector<Tensor> others;
    for (Tensor& tensor : all) restore_outer_sizes(tensor);
    multiply_by_scales(all, [&](const std::string& name) { return other_name(end_in_layer(name)) != nullptr; });
    for (Tensor& tensor : all) {
      const std::string_view end = end_in_layer(tensor.name);
      const char* const its = other_name(end);
      if (its == nullptr) continue;
      Tensor other = tensor.dtype == "I32" ? in_64_bits(tensor) : tensor;
      other.name.replace(other.name.size() - end.size(), end.size(), its);
      others.push_back(std::move(other));
    }
    for (Tensor& other : others) all.push_back(std::move(other));
    return all;
  }

 private:
  /// What the loader calls a tensor that files call so; or null.
  const char* other_name(std::string_view end) const {
    if (row_.name == "gemma4" && end == "ffn_gate_inp.scale") return "router.scale";
    if (row_.name == "gemma4" && end == "ffn_down_exps.scale") return "router.per_expert_scale";
    if (row_.name == "deepseek4" && end == "ffn_gate_tid2eid.weight") return "gate.tid2eid";
    return nullptr;
  }

  static Tensor in_64_bits(const Tensor& tensor) {
    const auto wide = std::make_shared<std::vector<std::int64_t>>();
    for (std::size_t at = 0; at + sizeof(std::int32_t) <= tensor.bytes.size(); at += sizeof(std::int32_t)) {
      wide->push_back(kernels::load_as<std::int32_t>(tensor.bytes.data() + at));
    }
    Tensor all = tensor;
    all.dtype = dtype_name<std::int64_t>;
    all.bytes = std::as_bytes(std::span(*wide));
    all.owner = wide;
    return all;
  }

  /// Of a model type that no table here knows.
  Architecture of_row() const {
    Architecture of{.model_type = row_.model_type};
    of.early_router = row_.early_router;
    of.gated = row_.gated;
    of.hidden = row_.hidden;
    of.d_latent = nemotron_latent;
    return of;
  }

  /// Layers of a draft head count, and their tensors may have been left out.
  /// @throws Error if the file says another number of blocks than it has.
  void require_all_blocks(const std::vector<Tensor>& tensors) const {
    const auto said = keys_.count("block_count");
    if (!said) return;
    Index there = 0;
    for (const Tensor& tensor : tensors) {
      if (!end_in_layer(tensor.name).empty()) there = std::max(there, layer_number(tensor.name) + 1);
    }
    const Index drafts = keys_.count("nextn_predict_layers").value_or(0);
    if (there <= *said && *said - there <= drafts && *said > 0) return;
    fail(keys_.file(), ": ", keys_.in_full("block_count"), " is ", *said, ", and ",
         there == 0 ? std::string("no tensor is of a block")
                    : "tensors are of blocks up to \"blk." + std::to_string(there - 1) + "\"",
         ", expected ", there, ": the file is not whole, or its keys are another's");
  }

  double limit_of_experts() const {
    return keys_.has("swiglu_clamp_exp") ? keys_.limit("swiglu_clamp_exp") : row_.limit;
  }

  double must_be_number(const char* key) const {
    const auto number = keys_.number(key);
    if (!number) fail(keys_.file(), ": has no \"", keys_.in_full(key), "\"");
    return *number;
  }

  bool has_selection_bias() const { return blocks_.have("exp_probs_b.bias"); }
  double cap() const { return keys_.number("router_logit_softcapping").value_or(0); }

  Index must_count(const char* key) const {
    const auto count = keys_.count(key);
    if (!count) fail(keys_.file(), ": has no \"", keys_.in_full(key), "\"");
    if (*count == 0) fail(keys_.file(), ": ", keys_.in_full(key), " is 0, expected 1 or more");
    return *count;
  }

  /// DeepSeek-V2's and V3's files are of one architecture, and say it only where config.json had a word for it. Only
  /// V3's choose with a bias.
  Gating gating() const {
    const Index said = keys_.count("expert_gating_func").value_or(0);
    if (said > Index(Gating::sqrt_softplus)) {
      fail(keys_.file(), ": ", keys_.in_full("expert_gating_func"), " is ", said,
           ", expected 1 (softmax), 2 (sigmoid), 3 (softmax of the chosen) or 4 (root of softplus)");
    }
    const bool as_v3 = row_.gating == Gating::unsaid && has_selection_bias();
    const Gating usual = row_.gating != Gating::unsaid ? row_.gating : as_v3 ? Gating::sigmoid : Gating::softmax;
    const auto gating = said == 0 ? usual : static_cast<Gating>(said);
    if (gating != usual && !row_.gating_by_key) {
      fail(keys_.file(), ": ", keys_.in_full("expert_gating_func"), " is ", said, ", expected ", Index(usual),
           ", as all models of architecture \"", row_.name, "\" have it");
    }
    return gating;
  }

  bool renormalize() const {
    const auto said = keys_.flag("expert_weights_norm");
    if (row_.renormalize == Renormalize::by_key) return said.value_or(false);
    const bool always = row_.renormalize == Renormalize::always;
    if (said.value_or(always) != always && !row_.own_router) {
      fail(keys_.file(), ": ", keys_.in_full("expert_weights_norm"), " is ", *said ? "true" : "false", ", expected ",
           always ? "true" : "false", ", as all models of architecture \"", row_.name, "\" have it");
    }
    return always;
  }

  /// 0 is no scale, as 1 is.
  double scale() const {
    const double said = keys_.number("expert_weights_scale").value_or(1);
    return said == 0 ? 1 : said;
  }

  void add_router(nlohmann::json& config) const {
    const Gating its_gating = gating();
    const bool renormalizes = renormalize();
    const Index groups = std::max<Index>(keys_.count("expert_group_count").value_or(1), 1);
    const Index kept = keys_.count("expert_group_used_count").value_or(groups);
    if (row_.own_router) {
      if (scale() == 1 && groups == 1) return;
      fail(keys_.file(), ": ", keys_.in_full(groups == 1 ? "expert_weights_scale" : "expert_group_count"), " is ",
           groups == 1 ? scale() : double(groups), ", expected 1: models of architecture \"", row_.name,
           "\" have none");
    }
    constexpr auto names = std::to_array<const char*>({"", "softmax", "sigmoid", "softmax_of_chosen", "sqrtsoftplus"});
    config["scoring_func"] = names[std::size_t(its_gating)];
    config["norm_topk_prob"] = renormalizes;
    config["routed_scaling_factor"] = scale();
    config["epsilon_of_weights"] = row_.epsilon;
    config["floor_of_weights"] = row_.floor;
    config["n_group"] = groups;
    config["topk_group"] = groups == 1 ? 1 : kept;
    if (model_type() == "deepseek_v2") config["topk_method"] = groups > 1 ? "group_limited_greedy" : "greedy";
  }

  void add_limits(nlohmann::json& config) const {
    const std::string type = model_type();
    if (type == "gpt_oss" || type == "minimax_m3_vl_text") {  // constants of the reference
      config["swiglu_limit"] = 7.0;
      config["swiglu_alpha"] = 1.702;
    }
    if (row_.clamp == Clamp::of_layer) {
      config["swiglu_limits"] = keys_.numbers("swiglu_clamp_exp");
      config["swiglu_limits_shared"] = keys_.numbers("swiglu_clamp_shexp");
      return;
    }
    const double limit = limit_of_experts();
    const double of_shared =
        keys_.has("swiglu_clamp_shexp") || type == "hy_v4" ? keys_.limit("swiglu_clamp_shexp") : limit;
    const double expected = row_.clamp == Clamp::none || type == "hy_v4" ? 0 : limit;
    if (of_shared != expected || (row_.clamp == Clamp::none && limit != 0)) {
      fail(keys_.file(), ": ", keys_.in_full("swiglu_clamp_exp"), " is ", limit, ", and that of shared experts ",
           of_shared, ", expected ", expected, ", as models of architecture \"", row_.name, "\" have it");
    }
    if (limit != 0) config["swiglu_limit"] = limit;
  }

  /// As wide as the tensors are; keys say it in several ways.
  Index d_ff_shared() const {
    const Index width = row_.dense_shared ? blocks_.d_ff_dense : blocks_.d_ff_shared;
    const Index said = keys_.count("expert_shared_feed_forward_length").value_or(0);
    const Index count = keys_.count("expert_shared_count").value_or(0);
    const Index d_ff = keys_.count("expert_feed_forward_length").value_or(0);
    const Index expected = said > 0 ? said : count * (d_ff > 0 ? d_ff : blocks_.d_ff);
    const bool is_each = said > 0 && count > 0 && width == said * count;  // what is said is of each
    if (expected > 0 && width != expected && !is_each) {
      fail(keys_.file(), ": shared experts are ", width, " wide in tensors \"blk.*.ffn_down_shexp.weight\", expected ",
           expected, " by the keys ", keys_.in_full("expert_shared_feed_forward_length"), " and ",
           keys_.in_full("expert_shared_count"));
    }
    return width;
  }

  const GgufArchitecture& row_;
  GgufKeys keys_;
  GgufBlocks blocks_;
};

/// Texts of the file, for Tensors::metadata().
inline Metadata texts_of(const GgufMetadata& metadata) {
  Metadata texts;
  for (const auto& [key, value] : metadata) {
    if (value.type == GgufType::text) texts[key] = to_json(value).get<std::string>();
  }
  return texts;
}

/// By its name, or its first letters: files are called otherwise, too ("sha256-…").
inline bool is_gguf(const std::filesystem::path& path) {
  std::error_code ignored;
  if (path.extension() == ".gguf") return !std::filesystem::is_directory(path, ignored);
  if (!std::filesystem::is_regular_file(path, ignored)) return false;
  std::array<char, 4> magic{};
  std::ifstream(path, std::ios::binary).read(magic.data(), magic.size());
  return std::string_view(magic.data(), magic.size()) == "GGUF";
}

}  // namespace detail

/// All that a Model is made of.
struct GgufModel {
  Config config;
  Architecture architecture;
  Tensors tensors;
};

/// The model that a file's keys and tensors are.
/// @param name  of the file, for messages
/// @throws Error naming the key or tensor, if its architecture is none that is read, or says here what it cannot say.
template <class BuiltAs = detail::Flags>
GgufModel translate_gguf(GgufFile file, const std::string& name) {
  const detail::GgufTranslation<BuiltAs> translation(file, name);
  const Architecture architecture = translation.architecture();
  Config config = translation.config(architecture);
  return {std::move(config), architecture,
          Tensors::of(name, translation.tensors(std::move(file.tensors)), detail::texts_of(file.metadata))};
}

/// Names of llama.cpp's architectures that are read, in the order of our table.
inline std::vector<std::string> gguf_architectures() {
  std::vector<std::string> names;
  for (const auto& one : detail::gguf_architectures) {
    if (!one.refused) names.emplace_back(one.name);
  }
  return names;
}

#if defined(MOE_IO_COMPILED)
extern template GgufModel translate_gguf<detail::Flags>(GgufFile, const std::string&);
#endif

}  // namespace moe::inline MOE_TARGET::io
