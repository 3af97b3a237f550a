/// @file  Changed layers back to a model's own form.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdio>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

#include <nlohmann/json.hpp>

#include "moe/core/parameters.hpp"
#include "moe/core/types.hpp"
#include "moe/io/architectures.hpp"
#include "moe/io/atomic_file.hpp"
#include "moe/io/atomic_folder.hpp"
#include "moe/io/block_form.hpp"
#include "moe/io/checkpoint.hpp"
#include "moe/io/config.hpp"
#include "moe/io/error.hpp"
#include "moe/io/expert_tensors.hpp"
#include "moe/io/json.hpp"
#include "moe/io/model.hpp"
#include "moe/io/safetensors_file.hpp"
#include "moe/io/shards.hpp"
#include "moe/io/tensor.hpp"
#include "moe/io/weight_tensors.hpp"
#include "moe/lora/adapter.hpp"
#include "moe/models/moe_shape.hpp"
#include "moe/routers/linear_top_k.hpp"

namespace moe::inline MOE_TARGET::io {

/// A layer that is to take the place of a model's block. It looks at the layer, which must live on and not move.
struct ModelBlock {
  std::string name;                      // "model.layers.3.mlp"
  std::vector<AnyParameter> parameters;  // all that the layer holds
  std::optional<TopKOptions> router{};   // of its LinearTopK, if it has one
  std::shared_ptr<const void> owner{};   // keeps the numbers, if the layer does not
};

/// Of a layer whose parts are of known types, or of a TrainableLayer, whose adapters are added into a copy.
/// @throws Error if it has adapters and is none: save merged(layer).
template <class Layer>
ModelBlock block_of(std::string name, Layer& layer) {
  if constexpr (requires { layer.merged_parts(); }) {
    auto parts = layer.merged_parts();
    ModelBlock block = block_of(std::move(name), parts);
    block.owner = parts.owner;
    return block;
  } else {
    using Scalar = typename Layer::Scalar;
    for (const auto& [matrix, adapter] : parts<Adapter<Scalar>>(layer)) {
      if (adapter->rank() == 0) continue;
      fail("\"", name, "\": ", matrix, " has an adapter of rank ", adapter->rank(),
           ", which the model's own form has no tensor for: save merged(layer), or the adapters by save_adapters()");
    }
    ModelBlock block{std::move(name), all_parameters(layer)};
    for (const auto& [router, part] : parts<LinearTopK<Scalar>>(layer)) block.router = part->options();
    return block;
  }
}

/// How save_model() writes.
struct SaveOptions {
  bool overwrite = false;                        // a model's folder of this name, with all that is in it
  std::size_t max_shard_bytes = 50'000'000'000;  // of tensors in one file, unless one alone has more: transformers 5.23
  bool other_files = true;                       // what lies beside: tokenizer.json, generation_config.json, …
};

namespace detail {

/// A tensor of the new folder: one that there is, or one to be put together.
struct PlannedTensor {
  std::string name, dtype;
  std::vector<Index> shape;
  std::vector<std::pair<const AnyParameter*, StoredParameter>> pieces = {};
  std::optional<Tensor> kept = {};
  std::span<const std::byte> spare = {};  // its last bytes, which are of no piece

  std::size_t bytes() const {
    return std::size_t(element_count({.name = name, .shape = shape}) * dtype_bits(dtype) / 8);
  }
};

/// Those of a model by name; in order of layers, as its writer had them.
using PlannedTensors = std::vector<PlannedTensor>;

/// f(its numbers, where they lie).
template <class F>
void with_numbers(const AnyParameter& parameter, const F& f) {
  const auto is = [&]<class T>(const T* numbers) {
    if (parameter.type != &moe::detail::type_id<T>) return false;
    f(numbers);
    return true;
  };
  const void* const data = parameter.data;
  if (is(static_cast<const float*>(data)) || is(static_cast<const double*>(data)) ||
      is(static_cast<const bfloat16*>(data)) || is(static_cast<const float16*>(data))) {
    return;
  }
  fail("parameter \"", parameter.name, "\" is of numbers of ", parameter.number_size,
       " bytes that are none of float, double, bfloat16 and float16");
}

/// f(T()), which a dtype is called in C++.
template <class F>
void with_dtype(const PlannedTensor& tensor, const F& f) {
  if (tensor.dtype == dtype_name<float>) return f(float());
  if (tensor.dtype == dtype_name<bfloat16>) return f(bfloat16());
  if (tensor.dtype == dtype_name<float16>) return f(float16());
  if (tensor.dtype == dtype_name<double>) return f(double());
  fail("tensor \"", tensor.name, "\" has dtype ", tensor.dtype, ", and numbers are written as F32, BF16, F16 or F64");
}

/// In memory of its own, each number rounded to the tensor's type.
/// @throws Error if a finite number is too large for that.
inline Tensor put_together(const PlannedTensor& planned) {
  if (planned.kept) return *planned.kept;
  const std::shared_ptr<std::byte[]> memory(new std::byte[planned.bytes()]);
  with_dtype(planned, [&]<class T>(T) {
    T* const all = reinterpret_cast<T*>(memory.get());
    for (const auto& [parameter, place] : planned.pieces) {
      with_numbers(*parameter, [&, &its = place, name = parameter->name](const auto* numbers) {
        for (Index r = 0; r < its.rows; ++r) {
          for (Index c = 0; c < its.cols; ++c) {
            const auto from = numbers[r * its.cols + c];
            const T to = static_cast<T>(from);
            if (std::isfinite(double(from)) && !std::isfinite(double(to))) {
              fail("tensor \"", planned.name, "\": ", double(from), " of ", name, " is too large for ", planned.dtype);
            }
            all[its.first + r * its.row_step + c * its.col_step] = to;
          }
        }
      });
    }
  });
  std::ranges::copy(planned.spare, memory.get() + (planned.bytes() - planned.spare.size()));
  return {.name = planned.name,
          .dtype = planned.dtype,
          .shape = planned.shape,
          .bytes = {memory.get(), planned.bytes()},
          .owner = memory};
}

/// Matches the parameters of a block with their places: none is left on either side.
/// @param dtype_of  (tensor, one like it) what type it is written in
template <class DtypeOf>
PlannedTensors plan_block(const ModelBlock& block, const std::vector<StoredParameter>& places,
                          const DtypeOf& dtype_of) {
  const std::string who = "\"" + block.name + "\": ";
  std::map<std::string_view, const AnyParameter*> left;
  for (const AnyParameter& parameter : block.parameters) left[parameter.name] = &parameter;
  std::map<std::string, PlannedTensor> tensors;
  for (const StoredParameter& place : places) {
    const auto found = left.find(place.parameter);
    if (found == left.end()) {
      fail(who, "the layer has no ", place.parameter, ", which the model's form keeps in tensor \"", place.tensor,
           "\"");
    }
    const AnyParameter& parameter = *found->second;
    const bool is_vector = std::min(parameter.rows, parameter.cols) == 1 && std::min(place.rows, place.cols) == 1;
    if (is_vector ? parameter.size() != place.rows * place.cols
                  : parameter.rows != place.rows || parameter.cols != place.cols) {
      fail(who, place.parameter, " has shape ", to_string({parameter.rows, parameter.cols}), ", expected ",
           to_string({place.rows, place.cols}), " of tensor \"", place.tensor, "\" ", to_string(place.shape));
    }
    if (parameter.coded != nullptr) {
      fail(who, place.parameter, " is quantised (", parameter.coded->format().name,
           "), expected numbers: save a layer of dequantized<bfloat16>(bank), or merged_as<bfloat16>(bank)");
    }
    if (parameter.data == nullptr) fail(who, place.parameter, " does not lie in one piece: save a copy of the layer");
    PlannedTensor& tensor = tensors[place.tensor];
    tensor.name = place.tensor;
    tensor.shape = place.shape;
    tensor.dtype = dtype_of(place.tensor, place.like);
    tensor.pieces.emplace_back(&parameter, place);
    left.erase(found);
  }
  if (!left.empty()) {
    fail(who, "the layer has ", left.begin()->first,
         left.size() > 1 ? " and " + std::to_string(left.size() - 1) + " others" : "",
         ", which the model's form has no tensor for");
  }
  PlannedTensors planned;
  for (auto& [name, tensor] : tensors) {
    Index numbers = tensor.pieces.front().second.spare;
    for (const auto& [parameter, place] : tensor.pieces) numbers += place.rows * place.cols;
    if (numbers != element_count({.name = name, .shape = tensor.shape})) {
      fail(who, "tensor \"", name, "\" ", to_string(tensor.shape), " gets ", numbers, " numbers");
    }
    planned.push_back(std::move(tensor));
  }
  return planned;
}

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

/// "model-00001-of-00004.safetensors", as the hub has it.
inline std::string hub_shard_name(std::size_t shard, std::size_t num_shards) {
  char text[100];
  std::snprintf(text, sizeof text, "model-%05zu-of-%05zu.safetensors", shard, num_shards);
  return text;
}

/// The tensors to files, one after the other; what is put together for one is gone before the next.
inline void write_shards(const std::filesystem::path& folder, const PlannedTensors& tensors, const Metadata& metadata,
                         std::size_t max_bytes) {
  std::vector<std::vector<const PlannedTensor*>> shards(1);
  std::size_t in_shard = 0, total = 0;
  for (const PlannedTensor& tensor : tensors) {
    if (!shards.back().empty() && in_shard + tensor.bytes() > max_bytes) {
      shards.emplace_back();
      in_shard = 0;
    }
    shards.back().push_back(&tensor);
    in_shard += tensor.bytes();
    total += tensor.bytes();
  }
  std::map<std::string, std::string> shard_of;
  for (std::size_t s = 0; s < shards.size(); ++s) {
    const std::string name = shards.size() == 1 ? "model.safetensors" : hub_shard_name(s + 1, shards.size());
    std::vector<Tensor> in_file;
    for (const PlannedTensor* tensor : shards[s]) {
      in_file.push_back(put_together(*tensor));
      shard_of[tensor->name] = name;
    }
    write_safetensors(folder / name, in_file, metadata);
  }
  if (shards.size() > 1) write_index(folder, shard_of, total);
}

/// Settings as a file has them, in its order, to be changed and written again.
class SettingsFile {
 public:
  explicit SettingsFile(const std::filesystem::path& path) : file_(read_file(path)) {
    settings = nlohmann::ordered_json::parse(with_quoted_numbers(text(), mark));
    before_ = settings;
  }

  nlohmann::ordered_json settings;

  /// The file's own bytes, if nothing is changed.
  void write(const std::filesystem::path& path) const {
    const std::string changed = without_quotes(settings.dump(2) + "\n", mark);
    const std::string_view written = settings == before_ ? text() : std::string_view(changed);
    write_atomically(path, {std::as_bytes(std::span(written))});
  }

 private:
  std::string_view text() const { return {reinterpret_cast<const char*>(file_.bytes.data()), file_.bytes.size()}; }

  static constexpr const char* mark = "a number that is not finite: ";

  MappedFile file_;
  nlohmann::ordered_json before_;
};

/// Files of a model's folder that are neither weights nor settings: tokenizers, templates, licences.
inline void copy_other_files(const std::filesystem::path& from, const std::filesystem::path& to) {
  const std::set<std::string> weights = {".safetensors", ".bin", ".pt",      ".pth", ".ckpt",
                                         ".gguf",        ".h5",  ".msgpack", ".onnx"};
  std::error_code error;
  for (std::filesystem::directory_iterator entry(from, error), end; !error && entry != end; entry.increment(error)) {
    const std::string name = utf8(entry->path().filename());
    if (!entry->is_regular_file(error) || weights.contains(utf8(entry->path().extension())) || name == "config.json" ||
        name.ends_with(".index.json")) {
      continue;
    }
    std::filesystem::copy_file(entry->path(), to / entry->path().filename(), error);
    if (error) break;
  }
  if (error) fail(utf8(from), ": other files cannot be copied to ", utf8(to), ": ", error.message());
}

/// Loads the blocks anew: what is written is what can be read. (Those of F64 alone are taken on trust: to load layers
/// of double would have every program compile them.)
inline void require_readable(const std::filesystem::path& folder, const std::vector<std::string>& blocks,
                             const PlannedTensors& tensors) {
  const Model written(folder);
  if (std::ranges::any_of(tensors, [](const auto& t) { return !t.kept && t.dtype == dtype_name<double>; })) return;
  for (const std::string& block : blocks) load_parts<float>(written, block);
}

/// @param from    whose other files are copied
/// @param blocks  that must be MoE blocks of what is written
inline void write_model(const std::filesystem::path& folder, const std::filesystem::path& from,
                        const SettingsFile& settings, PlannedTensors tensors, Metadata metadata,
                        const std::vector<std::string>& blocks, const SaveOptions& options) {
  std::ranges::stable_sort(tensors, {}, [](const PlannedTensor& t) { return in_order_of_numbers(t.name); });
  if (!metadata.contains("format")) metadata["format"] = "pt";  // without which transformers reads no file
  write_folder_atomically(folder, options.overwrite, "config.json", [&](const std::filesystem::path& in) {
    try {
      if (options.other_files) copy_other_files(from, in);
      settings.write(in / "config.json");
      write_shards(in, tensors, metadata, options.max_shard_bytes);
      require_readable(in, blocks, tensors);
    } catch (const Error& error) {  // in the words of whoever knows the folder by its name to be
      std::string what = error.what();
      for (std::size_t at = 0; (at = what.find(utf8(in), at)) != what.npos;)
        what.replace(at, utf8(in).size(), utf8(folder));
      throw Error(what);
    }
  });
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
      model.config().change(settings.settings, key, nlohmann::ordered_json(after));
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
