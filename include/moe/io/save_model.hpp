/// @file  Changed layers back to a model's own form.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdio>
#include <filesystem>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "moe/core/parameters.hpp"
#include "moe/core/types.hpp"
#include "moe/io/architectures.hpp"
#include "moe/io/block_form.hpp"
#include "moe/io/config.hpp"
#include "moe/io/error.hpp"
#include "moe/io/expert_tensors.hpp"
#include "moe/io/model.hpp"
#include "moe/io/model_block.hpp"
#include "moe/io/ordered_json.hpp"
#include "moe/io/planned_tensors.hpp"
#include "moe/io/tensor.hpp"
#include "moe/io/weight_tensors.hpp"
#include "moe/io/write_model.hpp"
#include "moe/models/moe_shape.hpp"
#include "moe/routers/linear_top_k.hpp"

namespace moe::inline MOE_TARGET::io {

namespace detail {

/// What one number of config.json says of all blocks.
struct BlockSizes {
  Index num_experts, d_ff, top_k;
  bool operator==(const BlockSizes&) const = default;
};

/// How many experts that compute, and of which width, by the names of parameters.
/// @throws Error if there is none.
inline BlockSizes sizes_of(const ModelBlock& block, Index top_k) {
  BlockSizes sizes{0, 0, block.router ? block.router->top_k : top_k};
  for (const AnyParameter& parameter : block.parameters) {
    long long expert = 0;
    if (std::sscanf(parameter.name.c_str(), "experts.%lld.", &expert) != 1) continue;
    sizes.num_experts = std::max(sizes.num_experts, Index(expert) + 1);
    if (parameter.name == "experts.0.up_proj.weight") sizes.d_ff = parameter.rows;
  }
  if (sizes.num_experts == 0) fail("\"", block.name, "\": the layer has no experts, and the model's block has");
  return sizes;
}

/// The options that the file's settings give, but for top_k, which it can say.
inline void require_same_router(const ModelBlock& block, const RouterOptions& of_file, const std::string& file) {
  if (!block.router) return;
  const auto* const expected = std::get_if<TopKOptions>(&of_file);
  TopKOptions same = *block.router;
  if (expected != nullptr) same.top_k = expected->top_k;
  if (expected != nullptr && same == *expected) return;
  fail("\"", block.name, "\": its router has other options (score, renormalisation, scale, groups) than ", file,
       " gives it, and only top_k can be changed there");
}

/// What a block's tensors become, and which of those that there are go.
class BlockSaver {
 public:
  BlockSaver(const Model& model, const ModelBlock& block)
      : model_(model), block_(block), weights_(model.weights(block.name)) {
    if (block.name.ends_with('.')) fail("\"", block.name, "\": expected the block's name without a last dot");
  }

  bool is_sparse() const { return std::ranges::count(model_.moe_blocks(), block_.name) > 0; }

  MoeShape shape() const { return moe_shape(config(), architecture(), block_.name); }

  /// The sizes that the layer has.
  BlockSizes sizes() const {
    const MoeShape old = shape();
    require_same_router(block_, router_of(old), config().file());
    return sizes_of(old);
  }

  void plan(PlannedTensors& planned, std::set<std::string>& replaced) const {
    const MoeShape old = shape();
    if (is_sparse()) {
      const WeightTensors tensors = this->tensors(old);
      const Names names = find_names(tensors, expert_spellings, architecture().experts, architecture().gated);
      const BlockForm form(tensors, config(), architecture(), names, old);
      const BlockSizes sizes = sizes_of(old);
      for (std::string& name : form.expert_tensors()) replaced.insert(std::move(name));
      add(planned, replaced, form.list(sizes.num_experts, sizes.d_ff));
      return;
    }
    const std::vector<Block> all = model_.blocks();
    if (std::ranges::count(all, block_.name, &Block::name) == 0) check_block(model_, block_.name);
    const std::size_t dot = block_.name.rfind('.');
    const WeightTensors beside(*weights_, dot == block_.name.npos ? "" : block_.name.substr(0, dot), 1);
    const BlockForm form(beside, config(), architecture(), {}, old);
    add(planned, replaced, form.list_ffn(dot == block_.name.npos ? block_.name : block_.name.substr(dot + 1)));
  }

 private:
  const Config& config() const { return model_.config(block_.name); }
  const Architecture& architecture() const { return model_.architecture(block_.name); }
  WeightTensors tensors(const MoeShape& old) const { return {*weights_, block_.name, old.num_experts}; }

  /// Without the experts that are not counted in config.json: shared ones that the router weighs, and as many of images
  /// as of text.
  BlockSizes sizes_of(const MoeShape& old) const {
    BlockSizes sizes = detail::sizes_of(block_, old.top_k);
    if (is_by_modality(tensors(old), architecture())) sizes.num_experts /= 2;
    if (architecture().router_kind == RouterKind::joint) {
      sizes.num_experts -= std::get<TopKOptions>(old.router).always_chosen;
    }
    return sizes;
  }

  /// As LayerLoader makes it: Inkling's weights are multiplied by a number of the file, too.
  RouterOptions router_of(const MoeShape& old) const {
    RouterOptions options = old.router;
    if (architecture().router_kind == RouterKind::joint) {
      std::get<TopKOptions>(options).scale *= double(tensors(old).template copy<float>("gate.global_scale", {1})(0));
    }
    return options;
  }

  void add(PlannedTensors& planned, std::set<std::string>& replaced, const std::vector<StoredParameter>& places) const {
    const Tensors& tensors = *weights_;
    const auto dtype_of = [&](const std::string& name, const std::string& like) {
      const Tensor there = tensors.at(tensors.contains(name) || like.empty() ? name : like);
      if (there.coded) {
        fail(to_string(there), " is quantised (", there.dtype,
             "), and learned numbers cannot be written back into that: save adapters, or into a model of 16 bits");
      }
      return there.dtype;
    };
    for (PlannedTensor& tensor : plan_block(block_, places, dtype_of)) {
      replaced.insert(tensor.name);
      if (const Index spare = tensor.pieces.front().second.spare; spare > 0) {  // as it was
        tensor.spare = tensors.find(tensor.name)->bytes.last(std::size_t(spare * dtype_bits(tensor.dtype) / 8));
      }
      planned.push_back(std::move(tensor));
    }
  }

  const Model& model_;
  const ModelBlock& block_;
  std::shared_ptr<const Tensors> weights_;
};

inline std::string text_of(const BlockSizes& sizes) {
  return std::to_string(sizes.num_experts) + " experts of width " + std::to_string(sizes.d_ff) + ", top-" +
         std::to_string(sizes.top_k);
}

/// The config of the first tower alone is changed: "talker" of Qwen3-Omni keeps its sizes.
/// @throws Error naming the block and both sizes, if it is of another tower and has others.
inline void require_sizes_as_they_were(const Model& model, const std::string& block, const BlockSizes& sizes) {
  const MoeShape shape = moe_shape(model.config(block), model.architecture(block), block);
  const BlockSizes old{shape.num_experts, shape.d_ff, shape.top_k};
  if (sizes == old) return;
  fail("\"", block, "\" has ", text_of(sizes), ", and had ", text_of(old), ": blocks of \"",
       block.substr(0, block.find('.')), "\" keep their sizes");
}

/// Is the width of its experts that of the config's own key? NLLB's decoder has another.
inline bool is_as_wide(const Model& model, const std::string& block) {
  return moe_shape(model.config(block), model.architecture(block), block).d_ff == model.shape(block).d_ff;
}

/// @throws Error unless all MoE blocks of the model are to be of these sizes.
inline void require_same_sizes(const Model& model, const std::map<std::string, BlockSizes>& given,
                               const BlockSizes& old) {
  const auto [block, sizes] = *given.begin();
  for (const std::string& name : model.moe_blocks()) {
    if (&model.config(name) != &model.config()) continue;
    if (!is_as_wide(model, name)) {
      if (sizes == old) continue;
      fail("\"", block, "\" has ", text_of(sizes), ", and \"", name, "\" is of another width: all keep their sizes");
    }
    const auto found = given.find(name);
    const BlockSizes its = found == given.end() ? old : found->second;
    if (its == sizes) continue;
    fail("\"", block, "\" has ", text_of(sizes), ", and \"", name, "\" ", text_of(its),
         found == given.end() ? " as it was" : "", ": config.json says one of all blocks, so all must be alike");
  }
}

}  // namespace detail

/// Writes a model as its folder has it, but for these blocks: theirs are the numbers of the layers, under the names, in
/// the layout and of the type that the folder has for them. config.json is carried over; where the layers have more or
/// fewer experts, experts of another width, or another top_k, as all blocks then must, it says so. All other tensors
/// stay as they are. That activations, and options of routers that are no LinearTopK, are the file's is the caller's
/// word.
///
///   const io::Model model("Qwen3-30B-A3B");
///   auto layer = io::load_trainable_layer(model, "model.layers.3.mlp");  // … learns
///   io::save_model("tuned", model, {io::block_of("model.layers.3.mlp", layer)});
///
/// Nothing is half written: the folder appears when all is in it, on the disk, and can be read.
/// @throws Error naming the block, the parameter and both shapes or types, if the form cannot say what a layer has:
///         adapters, a bias or norm that the model has none of, other options of a router, blocks of unlike sizes, few
///         bits; if `folder` is there already; or if it cannot be written. Then all is as it was.
inline void save_model(const std::filesystem::path& folder, const Model& model, const std::vector<ModelBlock>& blocks,
                       const SaveOptions& options = {}) {
  if (model.folder().empty()) fail(utf8(folder), ": the model has no folder whose config.json could be carried over");
  detail::SettingsFile settings(detail::config_file_in(model.folder()));
  std::set<std::string> replaced;
  std::vector<std::string> sparse;
  std::map<std::string, detail::BlockSizes> sizes;
  detail::PlannedTensors tensors;
  std::set<std::string> names;
  for (const ModelBlock& block : blocks) {
    if (!names.insert(block.name).second) fail("\"", block.name, "\" is given twice");
    const detail::BlockSaver saver(model, block);
    saver.plan(tensors, replaced);
    if (!saver.is_sparse()) continue;
    sparse.push_back(block.name);
    if (&model.config(block.name) == &model.config() && detail::is_as_wide(model, block.name)) {
      sizes.emplace(block.name, saver.sizes());
    } else {
      detail::require_sizes_as_they_were(model, block.name, saver.sizes());
    }
  }
  if (!sizes.empty()) {
    const Architecture& architecture = model.architecture();
    const MoeShape& shape = model.shape();
    const detail::BlockSizes old{shape.num_experts, shape.d_ff, shape.top_k}, now = sizes.begin()->second;
    detail::require_same_sizes(model, sizes, old);
    const auto change = [&](const char* key, Index before, Index after) {
      if (before == after) return;
      if (*key == '\0')
        fail("\"", sparse[0], "\" is top-", after, ", and model_type \"", architecture.model_type, "\" is always top-",
             before);
      model.config().change(settings.settings, key, OrderedJson(after));
    };
    change(architecture.num_experts, old.num_experts, now.num_experts);
    change(architecture.d_ff, old.d_ff, now.d_ff);
    change(architecture.top_k, old.top_k, now.top_k);
  }
  for (const std::string& name : model.tensors().names()) {
    if (replaced.contains(name)) continue;
    const Tensor kept = model.tensors().at(name);
    tensors.push_back({.name = name, .dtype = kept.dtype, .shape = kept.shape, .kept = kept});
  }
  detail::write_model(folder, model.folder(), settings, std::move(tensors), model.tensors().metadata(), sparse,
                      options);
}

}  // namespace moe::inline MOE_TARGET::io
