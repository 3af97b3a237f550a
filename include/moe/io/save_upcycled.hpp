/// @file  A dense model with sparse layers in place of its FFNs, in the form of a sparse model.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <filesystem>
#include <map>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include "moe/core/types.hpp"
#include "moe/io/architectures.hpp"
#include "moe/io/block_form.hpp"
#include "moe/io/config.hpp"
#include "moe/io/error.hpp"
#include "moe/io/expert_tensors.hpp"
#include "moe/io/model_block.hpp"
#include "moe/io/ordered_json.hpp"
#include "moe/io/planned_tensors.hpp"
#include "moe/io/save_model.hpp"
#include "moe/io/tensor.hpp"
#include "moe/io/weight_tensors.hpp"
#include "moe/io/write_model.hpp"
#include "moe/models/moe_shape.hpp"

namespace moe::inline MOE_TARGET::io {

namespace detail {

/// A sparse model that is a dense one, but for its FFNs.
struct SparseForm {
  std::string_view model_type, class_name, dense_types;
  std::string_view block;  // what it calls "mlp"
  std::string_view gate, up, down;
  std::string_view missing_tensors;  // that dense ones may have, and it has none of
  bool all_sparse;                   // has it no dense layers?
};

inline constexpr auto sparse_forms = std::to_array<SparseForm>({
    {"qwen3_moe", "Qwen3MoeForCausalLM", "qwen3", "mlp", "experts.#.gate_proj.weight", "experts.#.up_proj.weight",
     "experts.#.down_proj.weight", "", false},
    {"mixtral", "MixtralForCausalLM", "mistral|llama", "block_sparse_moe", "experts.#.w1.weight", "experts.#.w3.weight",
     "experts.#.w2.weight", "_proj.bias", true},
});

inline const SparseForm& sparse_form(const std::string& model_type, const Config& dense) {
  std::string known;
  for (const SparseForm& form : sparse_forms) {
    known += (known.empty() ? "" : ", ") + std::string(form.model_type) + " of " + std::string(form.dense_types);
    const auto types = alternatives(form.dense_types);
    if (form.model_type == model_type && std::ranges::count(types, dense.text("model_type")) > 0) return form;
  }
  fail(dense.file(), ": a model of model_type \"", dense.text("model_type"), "\" cannot become \"", model_type,
       "\", expected one of ", known);
}

/// Config.json of the sparse model, but for its sizes: what is the same in both classes stays.
/// @throws Error naming a key that is not there, since the classes have other defaults for it; or one that says what
/// the
///         sparse class cannot do.
inline void make_sparse(OrderedJson& settings, const SparseForm& form, const std::string& file) {
  const bool is_llama = settings["model_type"] == "llama";
  for (const char* const key : {"num_hidden_layers", "num_attention_heads", "num_key_value_heads", "hidden_size",
                                "vocab_size", "hidden_act", "rms_norm_eps", "max_position_embeddings"}) {
    if (!settings.contains(key)) {
      fail(file, ": has no \"", key, "\", for which the two models' classes have different defaults: write what it is");
    }
  }
  if (!settings.contains("rope_theta") && !settings.contains("rope_parameters")) {
    fail(file, ": has neither \"rope_theta\" nor \"rope_parameters\": write what they are");
  }
  if (form.model_type == "qwen3_moe" && !settings.contains("head_dim")) settings["head_dim"] = 128;  // qwen3's default
  if (form.model_type == "mixtral" && !settings.contains("sliding_window")) {
    settings["sliding_window"] = is_llama ? OrderedJson(nullptr) : OrderedJson(4096);  // mistral's
  }
  for (const char* const key : {"use_sliding_window", "mlp_bias"}) {
    if (settings.contains(key) && settings[key] == true) {
      fail(file, ": ", key, " is true, which layers of \"", form.model_type, "\" cannot do");
    }
  }
  for (const char* const key : {"layer_types", "max_window_layers", "mlp_bias", "pretraining_tp"}) settings.erase(key);
  settings["model_type"] = form.model_type;
  settings["architectures"] = {form.class_name};
}

}  // namespace detail

/// Writes a dense model with sparse layers in place of its FFNs, as a sparse model of this type: a qwen3 as
/// "qwen3_moe", which may keep some FFNs dense; a mistral or a llama as "mixtral", which may not. Numbers of the layers
/// are written in the type of the FFN before. Sizes, and renormalisation where config.json can say it, are the layers'.
///
///   auto layer = upcycle(bank_of_one_ffn, {.copies = 8, .active_copies = 2});
///   io::save_upcycled("sparse", "Qwen3-0.6B", "qwen3_moe", {io::block_of("model.layers.3.mlp", layer), …});
///
/// @param blocks  named as the FFNs are: "model.layers.3.mlp"; of routers that are LinearTopK
/// @throws Error naming the block, tensor or key, if the sparse model cannot say what the dense one or the layers have,
///         or as save_model().
inline void save_upcycled(const std::filesystem::path& folder, const std::filesystem::path& dense,
                          const std::string& model_type, const std::vector<ModelBlock>& blocks,
                          const SaveOptions& options = {}) {
  const std::filesystem::path file = detail::config_file_in(dense);
  detail::SettingsFile settings(file);
  OrderedJson& keys = settings.settings;
  const Config before = Config::open(file);
  const detail::SparseForm& form = detail::sparse_form(model_type, before);
  if (blocks.empty()) fail(utf8(dense), ": no sparse layer is given");
  for (const ModelBlock& block : blocks) {
    if (!block.router) fail("\"", block.name, "\": has no LinearTopK, and routers of \"", model_type, "\" are that");
  }

  // Config.json.
  const detail::BlockSizes sizes = detail::sizes_of(blocks[0], blocks[0].router->top_k);
  const Index num_layers = before.integer("num_hidden_layers");
  detail::make_sparse(keys, form, utf8(file));
  const Architecture& architecture = *find_architecture(model_type);
  keys[architecture.num_experts] = sizes.num_experts;
  keys[architecture.d_ff] = sizes.d_ff;
  keys[architecture.top_k] = sizes.top_k;
  std::set<Index> sparse;
  for (const ModelBlock& block : blocks) sparse.insert(detail::layer_number(block.name));
  if (model_type == "qwen3_moe") {
    keys["norm_topk_prob"] = blocks[0].router->renormalize;
    keys["decoder_sparse_step"] = 1;
    keys["mlp_only_layers"] = OrderedJson::array();
    for (Index i = 0; i < num_layers; ++i) {
      if (!sparse.contains(i)) keys["mlp_only_layers"].push_back(i);
    }
  }
  if (form.all_sparse && std::ssize(sparse) != num_layers) {
    fail(utf8(dense), ": has ", num_layers, " layers, of which ", sparse.size(), " are given, and all layers of a \"",
         model_type, "\" are sparse");
  }
  const Config config(nlohmann::json::parse(keys.dump()), utf8(file));
  const MoeShape shape = moe_shape(config, architecture);

  // Tensors.
  const Tensors tensors = Tensors::open(dense);
  std::set<std::string> replaced;
  std::vector<std::string> names;
  detail::PlannedTensors planned;
  for (const ModelBlock& block : blocks) {
    constexpr std::string_view last = ".mlp";
    if (!block.name.ends_with(last) || !tensors.contains(block.name + ".down_proj.weight")) {
      fail(utf8(dense), ": has no FFN \"", block.name, "\" with a \"down_proj.weight\"");
    }
    detail::require_same_router(block, shape.router, utf8(file));
    if (detail::sizes_of(block, 0) != sizes) {
      fail("\"", block.name, "\" and \"", blocks[0].name,
           "\" have other numbers of experts, other widths, or other "
           "top_k, and config.json says one of all");
    }
    for (const char* const part : {".gate_proj.weight", ".up_proj.weight", ".down_proj.weight"}) {
      if (!replaced.insert(block.name + part).second) fail("\"", block.name, "\" is given twice");
    }
    tensors.for_each_below(block.name + '.', [&](const Tensor& tensor) {
      if (!replaced.contains(tensor.name)) fail(to_string(tensor), " has no place in a \"", model_type, "\"");
    });
    names.push_back(block.name.substr(0, block.name.size() - last.size() + 1) + std::string(form.block));
    const WeightTensors at(tensors, names.back(), sizes.num_experts);
    const detail::Names experts{detail::Layout::separate, std::string(form.gate), std::string(form.up),
                                std::string(form.down)};
    const std::string dtype = tensors.at(block.name + ".down_proj.weight").dtype;
    const detail::BlockForm its(at, config, architecture, experts, shape);
    const auto dtype_of = [&](const std::string&, const std::string&) { return dtype; };
    for (auto& tensor : detail::plan_block(block, its.list(sizes.num_experts, sizes.d_ff), dtype_of)) {
      planned.push_back(std::move(tensor));
    }
  }
  for (const std::string& name : tensors.names()) {
    if (replaced.contains(name)) continue;
    const Tensor kept = tensors.at(name);
    if (!form.missing_tensors.empty() && name.ends_with(form.missing_tensors)) {
      fail(to_string(kept), " has no place in a \"", model_type, "\"");
    }
    planned.push_back({.name = name, .dtype = kept.dtype, .shape = kept.shape, .kept = kept});
  }
  detail::write_model(folder, dense, settings, std::move(planned), tensors.metadata(), names, options);
}

}  // namespace moe::inline MOE_TARGET::io
