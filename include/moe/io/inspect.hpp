/// @file  What a model's folder holds, and which of it would not load.
#pragma once

#include <algorithm>
#include <cstddef>
#include <filesystem>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "moe/core/types.hpp"
#include "moe/experts/any_activation.hpp"
#include "moe/io/architecture.hpp"
#include "moe/io/architectures.hpp"
#include "moe/io/checkpoint.hpp"
#include "moe/io/config.hpp"
#include "moe/io/error.hpp"
#include "moe/io/expert_tensors.hpp"
#include "moe/io/gguf.hpp"
#include "moe/io/gguf_architectures.hpp"
#include "moe/io/impostors.hpp"
#include "moe/io/model.hpp"
#include "moe/io/safetensors.hpp"
#include "moe/io/store/expert_bytes.hpp"
#include "moe/io/tensor.hpp"
#include "moe/io/weight_tensors.hpp"
#include "moe/models/moe_shape.hpp"
#include "moe/models/presets.hpp"

namespace moe::inline MOE_TARGET::io {

/// Bytes of numbers that are coded, with what lies in their blocks; scales that are tensors of their own are not in it.
inline Index coded_bytes(const Tensor& tensor) {
  double bits = 0;
  for (const QuantizedMatrix& matrix : *tensor.coded) {
    bits += matrix.format().bits * double(matrix.rows()) * double(matrix.cols());
  }
  return Index(bits / 8);
}

/// Some tensors together.
struct Holding {
  Index tensors = 0;
  Index bytes = 0;

  /// One tensor more; of coded ones the bytes that they have in files.
  void add(const Tensor& tensor) {
    tensors += 1;
    bytes += tensor.coded == nullptr ? std::ssize(tensor.bytes) : coded_bytes(tensor);
  }
};

/// By dtype: "BF16", "F32", "FP8", "Q4_K", …
using Formats = std::map<std::string, Holding>;

/// How the router of one block chooses.
struct RouterInspection {
  std::string kind;        // "top-k", "SparseMixer", "hash of token ids", …
  std::string side_input;  // what it reads of SideInputs: "token_ids", …; or ""
  RouterOptions options;   // of MoeShape
  double logit_scale = 1;  // multiplies the logits
  double logit_cap = 0;    // cap · tanh(logits / cap); 0: none
  bool has_capacity = false;
};

/// One MoE layer or dense FFN. What could not be found out because the block would be refused is empty, or 0.
struct BlockInspection {
  std::string name;
  bool sparse = false;
  std::optional<MoeShape> shape;    // of an MoE layer
  RouterInspection router = {};     // …
  std::string layout;               // … of its experts: "separate", "fused", "fused, interleaved", …, …
  std::string experts;              // … and what they are called: "experts.#.up_proj.weight"
  bool biased = false;              // … and have they biases?
  std::vector<std::string> around;  // … what else stands around them, in words
  Index d_ff = 0;                   // of a dense FFN, …
  std::string activation;           // … and its
  Formats formats;
  Holding unused = {};       // of those: what files hold and the model's own code does not read, either
  Index parameters = 0;      // of all others
  Index active = 0;          // of these, those that one token meets; of text, where there are experts for images
  Index expert_bytes = 0;    // of experts' weights, codes and scales: what ExpertStore leaves in the files …
  Index bytes_of_token = 0;  // … and what of it one token uses, on average over experts
  std::string refused;       // why it would be; or ""
};

/// A model's folder.
struct Inspection {
  std::string folder;
  std::string model_type;
  std::string refused;                       // why the model as a whole would be, and its blocks are not known; or ""
  std::vector<BlockInspection> blocks;       // in order
  std::map<std::string, Holding> elsewhere;  // tensors that belong to no block, by name with "#" for numbers
  std::vector<std::string> unread_keys;      // of config.json, which no block asked for
  Index bytes = 0;                           // of all tensors, as files have them

  /// Would anything in the folder be refused?
  bool refuses() const {
    return !refused.empty() || std::ranges::any_of(blocks, [](const auto& block) { return !block.refused.empty(); });
  }
};

namespace detail {

/// "model.layers.#.mlp" of "model.layers.3.mlp".
inline std::string without_numbers(std::string_view name) {
  std::string all;
  for (std::size_t first = 0; first <= name.size();) {
    const std::size_t dot = std::min(name.find('.', first), name.size());
    const std::string_view part = name.substr(first, dot - first);
    const bool is_number = !part.empty() && part.find_first_not_of("0123456789") == part.npos;
    all += is_number ? "#" : std::string(part);
    if (dot < name.size()) all += '.';
    first = dot + 1;
  }
  return all;
}

/// The numbers that learning would change: no table of token ids.
inline Index parameters_in(const Tensor& tensor) {
  if (tensor.coded) return element_count(tensor);
  return tensor.dtype.starts_with('F') || tensor.dtype == "BF16" ? element_count(tensor) : 0;
}

/// The tensors of one block.
/// @param tensors  the model's, or its weights(block)
inline std::vector<const Tensor*> tensors_of(const Model& model, const Tensors& tensors, const Block& block) {
  std::vector<const Tensor*> all;
  const std::string prefix = block.name.empty() ? "" : block.name + '.';
  const Architecture& architecture = model.architecture(block.name);
  const bool is_part = block.sparse || architecture.experts.empty();  // a dense FFN of GGUF has no folder of its own
  const auto scopes = alternatives(is_part ? architecture.scope : "");
  tensors.for_each_below(prefix, [&](const Tensor& tensor) {
    const std::string_view relative = std::string_view(tensor.name).substr(prefix.size());
    if (std::ranges::any_of(scopes, [&](std::string_view scope) { return relative.starts_with(scope); })) {
      all.push_back(&tensor);
    }
  });
  if (!block.sparse) return all;
  const std::string beside = block.name.substr(0, block.name.rfind('.') + 1);
  for (const std::string_view names : {architecture.shared, architecture.selection_bias, architecture.output_norm}) {
    for (const std::string_view name : alternatives(names)) {
      if (!name.starts_with("../")) continue;
      const std::string full = beside + std::string(name.substr(3));
      if (full.ends_with('.')) tensors.for_each_below(full, [&](const Tensor& tensor) { all.push_back(&tensor); });
      if (const Tensor* const tensor = tensors.find(full)) all.push_back(tensor);
    }
  }
  return all;
}

/// The message of what f() throws, or "".
template <class F>
std::string error_of(const F& f) {
  try {
    f();
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

inline constexpr const char* hash_kind = "hash of token ids";

inline RouterInspection inspect_router(const Config& config, const Architecture& its, const MoeShape& shape,
                                       const WeightTensors& tensors) {
  RouterInspection router{.kind = "top-k", .side_input = "", .options = shape.router};
  if (std::holds_alternative<SparseMixerOptions>(shape.router)) router.kind = "SparseMixer";
  switch (its.router_kind) {
    case RouterKind::linear:
      if (its.early_router) router.side_input = "router_input";
      break;
    case RouterKind::normed:
      router.kind = "top-k of normed tokens", router.side_input = "router_input";
      break;
    case RouterKind::hashed:
      if (tensors.contains("gate.tid2eid")) router.kind = hash_kind, router.side_input = "token_ids";
      break;
    case RouterKind::carried:
      router.kind = "top-k of an MLP that hears the layer before", router.side_input = "previous_state";
      break;
    case RouterKind::by_modality:
      if (tensors.contains("gate.weight_1"))
        router.kind = "top-k, one for each modality", router.side_input = "modality";
      break;
    case RouterKind::joint:
      router.kind = "top-k that weighs the shared experts, too";
      break;
  }
  if (its.logit_scale != nullptr) router.logit_scale = its.logit_scale(config);
  if (its.logit_cap != nullptr) router.logit_cap = its.logit_cap(config);
  if (its.capacity != nullptr) {
    router.has_capacity = true;
    if (its.capacity(config).per_sequence) router.side_input = "sequence_length";
  }
  return router;
}

/// What stands around the experts and is neither shared expert nor latent projection.
inline std::vector<std::string> parts_around(const Config& config, const Architecture& its) {
  std::vector<std::string> parts;
  if (!its.expert_norm.empty()) parts.emplace_back("an RMSNorm of each expert's answer");
  if (its.skips) parts.emplace_back("one more choice, which is to skip the layer");
  if (!its.output_bias.empty()) parts.emplace_back("a bias on the layer's answer");
  if (its.output_scale != nullptr && its.output_scale(config) != 1) {
    parts.push_back("the layer's answer × " + moe::detail::shown(float(its.output_scale(config))));
  }
  if (!its.output_norm.empty()) parts.emplace_back("an RMSNorm of the layer's answer");
  return parts;
}

inline std::string layout_text(const Names& names, bool interleaved, bool turned) {
  switch (names.layout) {
    case Layout::separate:
      return "separate";
    case Layout::stacked:
      return "stacked";
    case Layout::rows:
      return "rows of one matrix";
    case Layout::fused:
      break;
  }
  return std::string("fused") + (interleaved ? ", interleaved" : "") + (turned ? ", transposed" : "");
}

/// Parameters of the experts that a token does not meet.
inline Index count_idle(const Model& model, const BlockInspection& block, const WeightTensors& tensors) {
  const MoeShape& shape = *block.shape;
  const auto count = [&](Index d_ff) {
    const Index in = shape.d_latent > 0 ? shape.d_latent : shape.d_model;
    return is_gated(shape.hidden) ? count_gated_ffn_params(in, d_ff, block.biased)
                                  : count_ffn_params(in, d_ff, block.biased);
  };
  Index idle = (shape.num_experts - std::min(shape.top_k, shape.num_experts)) * count(shape.d_ff);
  const Architecture& its = model.architecture(block.name);
  if (its.router_kind == RouterKind::by_modality && tensors.contains("gate.weight_1")) {
    idle += shape.num_experts * count(model.config(block.name).integer_in_list(its.d_ff, 1));
  }
  return idle;
}

/// Is it one of those that files hold and nobody reads: of the architecture's list, a gate of no shared expert, weights
/// of experts that compute nothing?
inline bool is_unused(const Tensor& tensor, const std::string& block, const Architecture& architecture,
                      const MoeShape& shape) {
  const std::string_view relative = std::string_view(tensor.name).substr(block.empty() ? 0 : block.size() + 1);
  const auto is_one_of = [&](std::string_view names) {
    return std::ranges::any_of(alternatives(names),
                               [&](std::string_view name) { return !name.empty() && relative == name; });
  };
  if (is_one_of(architecture.ignored) || (shape.d_ff_shared == 0 && is_one_of(architecture.shared_gate))) return true;
  return shape.num_zero_experts > 0 &&
         std::ranges::any_of(alternatives(architecture.experts), [&](std::string_view experts) {
           if (!relative.starts_with(experts)) return false;
           const std::string_view rest = relative.substr(experts.size());
           const std::size_t digits = std::min(rest.find_first_not_of("0123456789"), rest.size());
           return digits > 0 && digits < 9 && std::stol(std::string(rest.substr(0, digits))) >= shape.num_experts;
         });
}

/// What of it is: all, the matrices behind those of the experts of a tensor that has all of them, or nothing.
inline Tensor unused_part(const Tensor& tensor, const std::string& block, const Architecture& architecture,
                          const MoeShape& shape) {
  Tensor part = tensor;
  if (is_unused(tensor, block, architecture, shape)) return part;
  const std::string_view relative = std::string_view(tensor.name).substr(block.empty() ? 0 : block.size() + 1);
  const Index stored = shape.num_experts + shape.num_zero_experts;
  const bool of_experts = std::ranges::any_of(alternatives(architecture.experts), [&](std::string_view experts) {
    return !experts.empty() && relative.starts_with(experts);
  });
  const bool has_spare = of_experts && shape.num_zero_experts > 0 && !tensor.shape.empty() && tensor.shape[0] == stored;
  const std::size_t used =
      has_spare ? tensor.bytes.size() / std::size_t(stored) * std::size_t(shape.num_experts) : tensor.bytes.size();
  if (has_spare) part.shape[0] = shape.num_zero_experts;
  part.bytes = tensor.bytes.subspan(used);
  return part;
}

/// The shape of the block, loaded as load_layer() does; but of experts that would be turned in memory, or read for
/// their scales, one alone: what holds them is of all, so it is checked for all.
template <class Scalar, class BuiltAs>
MoeShape loaded_shape(const Model& model, const std::string& name, bool in_place) {
  if (in_place) return load_layer<Scalar, BuiltAs>(model, name).shape;
  return load_parts<Scalar, BuiltAs>(model, name, std::vector<Index>{0}).shape;
}

template <class BuiltAs>
void inspect_layer(const Model& model, BlockInspection& block) {
  const Architecture& its = model.architecture(block.name);
  const Config& config = model.config(block.name);
  const MoeShape shape = moe_shape(config, its, block.name);
  const auto weights = model.weights(block.name);
  const WeightTensors tensors =
      WeightTensors(*weights, block.name, shape.num_experts).with_spare(shape.num_zero_experts);
  const Names names = find_names(tensors, expert_spellings, its.experts, its.gated);
  const bool fused = names.layout == Layout::fused;
  const bool turned =
      fused && is_turned(tensors, names, shape.d_latent > 0 ? shape.d_latent : shape.d_model, shape.d_ff);
  const std::string bias = bias_name(names.up);
  block.shape = shape;
  block.router = inspect_router(config, its, shape, tensors);
  block.layout = layout_text(names, fused && (names.interleaved || its.interleaved), turned);
  block.experts = names.up;
  block.biased = tensors.contains(names.layout == Layout::separate ? WeightTensors::numbered(bias, 0) : bias);
  block.around = parts_around(config, its);
  if (block.router.side_input == "modality") {
    block.around.push_back(std::to_string(shape.num_experts) + " experts for images, d_ff " +
                           std::to_string(config.integer_in_list(its.d_ff, 1)));
  }
  const bool in_place = !turned && names.layout != Layout::rows && !is_gguf(model.folder());  // scales are looked at
  block.shape = block.formats.size() == 1 && block.formats.contains("F64")
                    ? loaded_shape<double, BuiltAs>(model, block.name, in_place)
                    : loaded_shape<float, BuiltAs>(model, block.name, in_place);
  if (block.router.kind == hash_kind) block.shape->selection_bias = false;  // a table chooses
  for (const Tensor* const tensor : tensors_of(model, *weights, {block.name, true})) {
    if (tensor->name.size() < block.name.size()) continue;
    const Tensor unused = unused_part(*tensor, block.name, its, *block.shape);
    if (unused.bytes.empty()) continue;
    block.unused.add(unused);
    block.parameters -= parameters_in(unused);
  }
  block.active = block.parameters - count_idle(model, block, tensors);
  for (const FileParts& parts : expert_parts(model, block.name)) block.expert_bytes += io::bytes_of(parts);
  block.bytes_of_token = Index(double(block.expert_bytes) / double(std::max<Index>(block.shape->num_experts, 1)) *
                               double(std::min(block.shape->top_k, block.shape->num_experts)));
}

template <class BuiltAs>
void inspect_ffn(const Model& model, BlockInspection& block) {
  const HiddenActivation hidden =
      hidden_of(model.config(block.name), model.architecture(block.name), layer_number(block.name), true);
  const auto weights = model.weights(block.name);
  const WeightTensors tensors(*weights, block.name, 1);
  const Names names = find_names(tensors, ffn_spellings, "", is_gated(hidden));
  block.activation = to_string(hidden);
  block.active = block.parameters;
  if (tensors.contains(names.down) && tensors.num_dimensions(names.down) == 2)
    block.d_ff = tensors.shape(names.down)[1];
  if (block.formats.size() == 1 && block.formats.contains("F64")) {
    load_ffn<double, BuiltAs>(model, block.name);
  } else {
    load_ffn<float, BuiltAs>(model, block.name);
  }
}

}  // namespace detail

/// Tries every block as load_layer() and Model::ffn() would load it, one after the other, and keeps none. (A template,
/// so that nobody else has to compile the loaders.)
template <class BuiltAs = detail::Flags>
Inspection inspect(const Model& model) {
  Inspection all{.folder = utf8(model.folder()),
                 .model_type = model.config().text("model_type"),
                 .refused = "",
                 .blocks = {},
                 .elsewhere = {},
                 .unread_keys = {}};
  std::set<std::string_view> in_blocks;
  for (const Block& one : model.blocks()) {
    BlockInspection block{.name = one.name,
                          .sparse = one.sparse,
                          .shape = {},
                          .layout = "",
                          .experts = "",
                          .around = {},
                          .activation = "",
                          .formats = {},
                          .refused = ""};
    for (const Tensor* const tensor : detail::tensors_of(model, model.tensors(), one)) in_blocks.insert(tensor->name);
    block.refused = detail::error_of([&] {
      const auto weights = model.weights(one.name);
      for (const Tensor* const tensor : detail::tensors_of(model, *weights, one)) {
        block.formats[tensor->dtype].add(*tensor);
        block.parameters += detail::parameters_in(*tensor);
      }
    });
    if (block.refused.empty())
      block.refused = detail::error_of([&] {
        one.sparse ? detail::inspect_layer<BuiltAs>(model, block) : detail::inspect_ffn<BuiltAs>(model, block);
      });
    all.blocks.push_back(std::move(block));
  }
  model.tensors().for_each_below("", [&](const Tensor& tensor) {
    all.bytes += std::ssize(tensor.bytes);
    if (!in_blocks.contains(tensor.name)) all.elsewhere[detail::without_numbers(tensor.name)].add(tensor);
  });
  if (model.moe_blocks().empty()) {
    all.refused = "no MoE block: no tensor is called \"" +
                  std::string(detail::alternatives(model.architecture().experts)[0]) + "*\"";
  }
  if (!detail::is_gguf(model.folder())) all.unread_keys = model.config().unread();  // of GGUF all are read, or refused
  return all;
}

namespace detail {

/// Of files that are a model: its parts, or why they are none.
template <class BuiltAs, class Make>
Inspection inspect_if_known(const std::string& model_type, const Tensors& tensors, const Make& make) {
  std::optional<Model> model;
  const std::string refused = error_of([&] { make(model); });
  if (model) return inspect<BuiltAs>(*model);
  Inspection all{
      .folder = "", .model_type = model_type, .refused = refused, .blocks = {}, .elsewhere = {}, .unread_keys = {}};
  tensors.for_each_below("", [&](const Tensor& tensor) { all.elsewhere[without_numbers(tensor.name)].add(tensor); });
  return all;
}

}  // namespace detail

/// The same of a folder, or of a GGUF file, whose model_type or architecture may be none that is known.
/// @throws Error naming the file, if config.json, a *.safetensors or the *.gguf is missing or not as it should be.
template <class BuiltAs = detail::Flags>
Inspection inspect_folder(const std::filesystem::path& folder, const ReadOptions& options = {}) {
  Inspection all;
  if (detail::is_gguf(folder)) {
    const GgufFile file = read_gguf(folder, options.access);
    const Tensors tensors = Tensors::of(utf8(folder), file.tensors, detail::texts_of(file.metadata));
    const auto architecture = tensors.metadata().find("general.architecture");
    all = detail::inspect_if_known<BuiltAs>(architecture == tensors.metadata().end() ? "" : architecture->second,
                                            tensors, [&](auto& model) { model.emplace(folder, options); });
  } else {
    const Config config = Config::open(detail::config_file_in(folder));
    const Tensors tensors = Tensors::open(folder, options.access);
    all = detail::inspect_if_known<BuiltAs>(config.text("model_type"), tensors,
                                            [&](auto& model) { model.emplace(folder, options); });
  }
  all.folder = utf8(folder);
  return all;
}

}  // namespace moe::inline MOE_TARGET::io
