/// @file  MoE blocks of a model to a GGUF file.
#pragma once

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <set>
#include <string>
#include <variant>
#include <vector>

#include "moe/core/types.hpp"
#include "moe/experts/any_activation.hpp"
#include "moe/io/architectures.hpp"
#include "moe/io/error.hpp"
#include "moe/io/gguf.hpp"
#include "moe/io/gguf_architectures.hpp"
#include "moe/io/gguf_tensors.hpp"
#include "moe/io/gguf_writer.hpp"
#include "moe/io/model.hpp"
#include "moe/io/safetensors.hpp"
#include "moe/io/shape_difference.hpp"
#include "moe/io/tensor.hpp"
#include "moe/models/moe_shape.hpp"
#include "moe/routers/top_k.hpp"

namespace moe::inline MOE_TARGET::io {

namespace detail {

/// The number of llama.cpp's, of a score.
inline std::uint32_t gating_of(const TopKOptions& options) {
  switch (options.score) {
    case Score::softmax:
      return std::uint32_t(Gating::softmax);
    case Score::sigmoid:
      return std::uint32_t(Gating::sigmoid);
    case Score::softmax_of_chosen:
      return std::uint32_t(Gating::softmax_of_chosen);
    case Score::sqrt_softplus:
      return std::uint32_t(Gating::sqrt_softplus);
    default:
      return std::uint32_t(Gating::unsaid);
  }
}

/// The activation, if it is one of these; else null.
template <class Act>
const Act* held(const HiddenActivation& hidden) {
  return is_gated(hidden) ? std::get_if<Act>(&std::get<AnyGatedActivation>(hidden).held()) : nullptr;
}

/// The limit of an activation that has one; 0 of one that has not.
inline float limit_of(const HiddenActivation& hidden) {
  if (!is_gated(hidden)) return 0;
  return std::visit(
      [](const auto& act) {
        if constexpr (requires { act.limit; }) {
          return float(act.limit);
        } else {
          return 0.0F;
        }
      },
      std::get<AnyGatedActivation>(hidden).held());
}

}  // namespace detail

/// The keys that say of a model's MoE blocks what its own config says.
/// @param num_layers  of the whole model
/// @throws Error if llama.cpp has no architecture for its model type.
inline GgufMetadata gguf_metadata(const Model& model, Index num_layers) {
  const auto& texts = model.tensors().metadata();
  const auto own = texts.find("general.architecture");
  const std::string name = detail::is_gguf(model.folder()) && own != texts.end()
                               ? own->second
                               : std::string(detail::gguf_row_for(model.config()).name);
  const auto* const row = std::ranges::find(detail::gguf_architectures, name, &detail::GgufArchitecture::name);
  const MoeShape& shape = model.shape();
  GgufMetadata all = {{"general.architecture", gguf_value(name)}};
  const auto add = [&](const char* key, const auto& value) { all.push_back({name + "." + key, gguf_value(value)}); };
  const auto count = [&](const char* key, Index value) { add(key, std::uint32_t(value)); };
  count("block_count", num_layers);
  count("embedding_length", shape.d_model);
  count("feed_forward_length", shape.d_ff);
  count("expert_count", shape.num_experts);
  count("expert_used_count", shape.top_k);
  count("expert_feed_forward_length", shape.d_ff);
  if (shape.d_ff_shared > 0) {
    const bool divides = shape.d_ff_shared % shape.d_ff == 0;
    const Index number = divides ? shape.d_ff_shared / shape.d_ff : 1;
    count("expert_shared_count", number);
    count("expert_shared_feed_forward_length", name == "bailingmoe2" ? shape.d_ff_shared / number : shape.d_ff_shared);
  }
  if (shape.d_latent > 0) count(name == "kimi-k3" ? "expert_latent_length" : "moe_latent_size", shape.d_latent);
  if (const auto* const situ = detail::held<SoftcappedSwiGlu>(shape.hidden)) {
    add("activation.situ_beta", situ->gate_cap);
    add("activation.situ_linear_beta", situ->up_cap);
  }
  if (model.architecture().router_kind == RouterKind::hashed) {
    const auto names = model.tensors().names();
    count("hash_layer_count",
          std::ranges::count_if(names, [](const std::string& its) { return its.ends_with(".gate.tid2eid"); }));
  }
  if (const Config& config = model.config(); !config.is_null("rms_norm_eps")) {
    add("attention.layer_norm_rms_epsilon", float(config.number("rms_norm_eps")));
  }
  if (const auto* const top_k = std::get_if<TopKOptions>(&shape.router); top_k != nullptr && !row->own_router) {
    const bool is_same = top_k->score == Score::softmax && row->gating == detail::Gating::softmax_of_chosen;
    if (!is_same && row->gating_by_key) add("expert_gating_func", detail::gating_of(*top_k));
    if (row->renormalize == detail::Renormalize::by_key) add("expert_weights_norm", top_k->renormalize);
    if (top_k->scale != 1) add("expert_weights_scale", float(top_k->scale));
    if (top_k->num_groups > 1) {
      count("expert_group_count", top_k->num_groups);
      count("expert_group_used_count", top_k->kept_groups);
    }
  }
  if (const Architecture& its = model.architecture(); its.logit_cap != nullptr && its.logit_cap(model.config()) != 0) {
    add("router_logit_softcapping", float(its.logit_cap(model.config())));
  }
  if (row->clamp == detail::Clamp::none) return all;
  const auto add_limits = [&](const char* key, bool of_shared) {
    std::vector<float> limits;
    for (Index layer = 0; layer < num_layers; ++layer) {
      const MoeShape its = moe_shape(model.config(), model.architecture(), layer);
      limits.push_back(detail::limit_of(of_shared ? its.hidden_shared : its.hidden));
    }
    all.push_back({name + "." + key, gguf_list(limits)});
  };
  add_limits("swiglu_clamp_exp", false);
  add_limits("swiglu_clamp_shexp", true);
  return all;
}

namespace detail {

/// Tensors of a model's blocks, with or without bytes, and the keys that go with them.
/// @throws Error if they would say something else than the model's config does.
inline GgufFile gguf_file_of(const Model& model, const std::vector<Tensor>& tensors, const GgufMetadata& more,
                             const std::string& name) {
  Index num_layers = 0;
  for (const Tensor& tensor : tensors) num_layers = std::max(num_layers, layer_number(tensor.name) + 1);
  GgufFile file{gguf_metadata(model, num_layers), tensors};
  file.metadata.insert(file.metadata.end(), more.begin(), more.end());
  const GgufModel written = translate_gguf(file, name);
  std::optional<SettingDifference> differs =
      difference(factors_of(model.architecture(), model.config()), factors_of(written.architecture, written.config));
  std::set<Index> layers;
  for (const Tensor& tensor : tensors) layers.insert(std::max<Index>(layer_number(tensor.name), 0));
  for (auto layer = layers.begin(); !differs && layer != layers.end(); ++layer) {
    differs = io::difference(moe_shape(model.config(), model.architecture(), *layer),
                             moe_shape(written.config, written.architecture, *layer));
  }
  if (differs) {
    fail(name, ": GGUF's architecture \"", row_of(file.metadata, name).name, "\" cannot say ", differs->setting,
         " of model_type \"", model.config().text("model_type"), "\": here it is ", differs->of_a,
         ", and who reads the file would take ", differs->of_b);
  }
  return file;
}

}  // namespace detail

/// Writes MoE blocks as a GGUF file that io::Model and gguf-py read.
///
///   std::vector<io::Tensor> tensors;
///   for (const std::string& block : model.moe_blocks()) {
///     for (io::Tensor& tensor : io::gguf_tensors(model, block)) tensors.push_back(…coded, or as it is…);
///   }
///   io::save_gguf("experts.gguf", model, tensors, {{"general.name", io::gguf_value("mine")}});
///
/// @param tensors  of blocks, named "blk.3.ffn_up_exps.weight" and so on, in types of ggml's
/// @param more     keys to be there, too
/// @throws Error if the file's keys and tensors would say something else than the model's config does (a router that
///         llama.cpp's architecture has not, for example), or as write_gguf().
inline void save_gguf(const std::filesystem::path& path, const Model& model, const std::vector<Tensor>& tensors,
                      const GgufMetadata& more = {}) {
  const GgufFile file = detail::gguf_file_of(model, tensors, more, utf8(path));
  write_gguf(path, file.metadata, file.tensors);
}

}  // namespace moe::inline MOE_TARGET::io
