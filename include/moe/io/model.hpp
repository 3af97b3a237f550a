/// @file  The files of a model, opened once for all of its layers.
#pragma once

#include <algorithm>
#include <array>
#include <concepts>
#include <cstddef>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "moe/io/architectures.hpp"
#include "moe/io/built_with.hpp"
#include "moe/io/coded_weights.hpp"
#include "moe/io/config.hpp"
#include "moe/io/edit_distance.hpp"
#include "moe/io/error.hpp"
#include "moe/io/expert_tensors.hpp"
#include "moe/io/gguf.hpp"
#include "moe/io/gguf_architectures.hpp"
#include "moe/io/impostors.hpp"
#include "moe/io/load_layer.hpp"
#include "moe/io/mapped_file.hpp"
#include "moe/io/safetensors.hpp"
#include "moe/io/store/lender.hpp"
#include "moe/layers/any_layer.hpp"
#include "moe/models/moe_shape.hpp"

namespace moe::inline MOE_TARGET::io {

namespace detail {

/// With zeros before its numbers, so that "layers.2" comes before "layers.10".
inline std::string in_order_of_numbers(std::string_view name) {
  constexpr std::size_t width = 20;
  std::string padded;
  for (std::size_t i = 0; i < name.size();) {
    const std::size_t digits = std::min(name.find_first_not_of("0123456789", i), name.size()) - i;
    const std::size_t length = std::max<std::size_t>(digits, 1);
    if (digits > 0 && digits < width) padded.append(width - digits, '0');
    padded += name.substr(i, length);
    i += length;
  }
  return padded;
}

/// Is it the end of the name of experts' weights, as files spell it? "3.w1.weight" is, and "gate_proj.weight" of three
/// dimensions.
inline bool names_an_expert(std::string_view end, const std::string& name, const Tensors& tensors) {
  if (constexpr std::string_view coded = "_packed"; end.ends_with(coded)) end.remove_suffix(coded.size());
  const auto dimensions = [&] { return tensors.find(name)->shape.size(); };
  for (const auto& [layout, gated, gate, up, down, interleaved] : expert_spellings) {
    for (const std::string_view spelt : {gate, up, down}) {
      if (spelt.empty()) continue;
      const std::size_t hash = spelt.find('#');
      if (hash == spelt.npos) {
        if (layout == Layout::fused && end.starts_with(spelt) && end.substr(spelt.size()) == "_blocks") return true;
        if (end == spelt && dimensions() == (layout == Layout::rows ? 2 : 3)) return true;
        continue;
      }
      if (!end.starts_with(spelt.substr(0, hash)) || !end.ends_with(spelt.substr(hash + 1))) continue;
      if (end.size() < spelt.size()) continue;
      const std::string_view number = end.substr(hash, end.size() - (spelt.size() - 1));
      if (!number.empty() && number.find_first_not_of("0123456789") == number.npos) return true;
    }
  }
  return false;
}

/// Attention may have experts of its own (JetMoE), which are no FFNs: no block of ours.
inline bool is_attention(std::string_view block) {
  const std::string_view last = block.substr(block.rfind('.') + 1);
  return last == "self_attention" || last == "self_attn" || last == "attention" || last == "attn";
}

/// What stands before the experts' weights of this name; of several readings, that of the first alternative.
inline std::optional<std::string> block_of(const std::string& name, const Tensors& tensors,
                                           const Architecture& architecture) {
  const std::string dotted = "." + name;
  for (const std::string_view experts : alternatives(architecture.experts)) {
    for (std::size_t at = dotted.find('.'); at != std::string::npos; at = dotted.find('.', at + 1)) {
      const std::string_view rest = std::string_view(dotted).substr(at + 1);
      if (!rest.starts_with(experts)) continue;
      const std::string_view end = rest.substr(experts.size());
      const bool numbered = !experts.empty() && !end.empty() && end[0] >= '0' && end[0] <= '9';
      if (numbered || names_an_expert(end, name, tensors)) return at == 0 ? "" : dotted.substr(1, at - 1);
    }
  }
  return std::nullopt;
}

/// What stands before experts in names, each once.
/// @param architecture_of  that of the tower to which a name belongs
template <class ArchitectureOf>
std::vector<std::string> blocks_in(const Tensors& tensors, const ArchitectureOf& architecture_of) {
  std::set<std::string> blocks;
  for (const std::string& name : tensors.names()) {
    const auto block = block_of(name, tensors, architecture_of(name));
    if (block && !is_attention(*block)) blocks.insert(*block);
  }
  std::vector<std::string> in_order(blocks.begin(), blocks.end());
  std::ranges::sort(in_order, {}, in_order_of_numbers);
  return in_order;
}

/// Up to and with the dot before the number of a layer: "model.layers." of "model.layers.3.mlp"; "" without a number.
inline std::string stem_of(std::string_view block) {
  for (std::size_t dot = block.find('.'); dot != block.npos; dot = block.find('.', dot + 1)) {
    if (dot + 1 < block.size() && block[dot + 1] >= '0' && block[dot + 1] <= '9')
      return std::string(block.substr(0, dot + 1));
  }
  return "";
}

/// A model that is whole has its embedding, and then all layers that its config promises. (A folder may hold one block
/// alone; and more layers than promised, of a draft head.)
/// @param block  one of its MoE blocks, by which its layers are found
/// @throws Error naming both numbers, if layers are missing.
inline void require_all_layers(const Config& config, const Tensors& tensors, const std::string& block) {
  const std::string stem = stem_of(block);  // "model.layers."
  const std::size_t dot = stem.size() < 2 ? stem.npos : stem.rfind('.', stem.size() - 2);
  const std::string around = dot == stem.npos ? "" : stem.substr(0, dot + 1);
  const auto is_embedding = [&](const Tensor& tensor) {
    constexpr auto names = std::to_array<std::string_view>(
        {"embed_tokens.weight", "embeddings.weight", "word_embeddings.weight", "wte.weight", "embed.weight"});
    const std::string_view end = std::string_view(tensor.name).substr(around.size());
    return std::ranges::count(names, end) > 0;
  };
  bool is_whole = false;
  std::set<Index> there;
  if (stem.empty()) return;
  tensors.for_each_below(around, [&](const Tensor& tensor) {
    is_whole = is_whole || is_embedding(tensor);
    if (tensor.name.starts_with(stem)) there.insert(layer_number(std::string_view(tensor.name).substr(stem.size())));
  });
  if (!is_whole || is_set(config, "is_encoder_decoder") || config.is_null("num_hidden_layers")) return;
  const Index promised = config.integer("num_hidden_layers"), last = there.empty() ? -1 : *there.rbegin();
  for (Index layer = 0; layer < std::min<Index>(promised, last + 2); ++layer) {
    if (there.contains(layer)) continue;
    fail(config.file(), ": num_hidden_layers is ", promised, ", and no tensor is called \"", stem, layer, ".*\" (",
         there.size(), " layers are there): files are missing, or config.json is of another model");
  }
}

/// FFNs of layers like those of the MoE blocks, that are no part of a block.
template <class ArchitectureOf>
std::vector<std::string> dense_blocks(const Tensors& tensors, const std::vector<std::string>& moe_blocks,
                                      const ArchitectureOf& architecture_of) {
  std::set<std::string> stems, found;
  for (const std::string& block : moe_blocks) stems.insert(stem_of(block));
  const std::set<std::string> sparse(moe_blocks.begin(), moe_blocks.end());
  const auto is_part_of_one = [&](const std::string& prefix, const Architecture& architecture) {
    for (std::size_t dot = prefix.rfind('.'); dot != prefix.npos;
         dot = dot == 0 ? prefix.npos : prefix.rfind('.', dot - 1)) {
      if (!sparse.contains(prefix.substr(0, dot))) continue;
      const std::string_view rest = std::string_view(prefix).substr(dot + 1);
      return std::ranges::any_of(alternatives(architecture.scope),
                                 [&](std::string_view scope) { return (std::string(rest) + '.').starts_with(scope); });
    }
    return sparse.contains(prefix) && architecture.scope.empty();
  };
  const auto is_shared = [&](const std::string& prefix, const Architecture& architecture) {
    return std::ranges::any_of(alternatives(architecture.shared), [&](std::string_view shared) {
      return shared.starts_with("../") && (prefix + '.').ends_with('.' + std::string(shared.substr(3)));
    });
  };
  for (const std::string& name : tensors.names()) {
    const Architecture& architecture = architecture_of(name);
    for (const auto& [layout, gated, gate, up, down, interleaved] : ffn_spellings) {
      if (gated != architecture.gated || down.ends_with("_shexp.weight")) continue;  // GGUF's shared experts
      if (!name.ends_with('.' + std::string(down))) continue;
      const std::string prefix = name.substr(0, name.size() - down.size() - 1);
      const auto has = [&](std::string_view part) {
        return part.empty() || tensors.contains(prefix + '.' + std::string(part));
      };
      if (!has(gate) || !has(up) || tensors.find(name)->shape.size() != 2) continue;
      if (!stems.contains(stem_of(prefix)) || is_part_of_one(prefix, architecture)) continue;
      if (is_shared(prefix, architecture)) continue;
      found.insert(prefix);
    }
  }
  return {found.begin(), found.end()};
}

}  // namespace detail

/// How a folder is read.
struct ReadOptions {
  Access access = Access::mapped;
  /// Where transformers' class and the code that the maker put beside the weights disagree, the maker's counts. Known:
  /// deepseek_v2 with norm_topk_prob, where the class scales and the maker renormalises instead.
  bool hub_code = false;
};

/// Part of a decoder layer: an MoE layer, or a dense FFN.
struct Block {
  std::string name;  // "model.layers.3.mlp"
  bool sparse;
};

/// A model's folder, open: config.json and all tensors of its *.safetensors; or a *.gguf file, whose blocks are called
/// "blk.3". Opened once for all of its layers. A folder or file converts to it, so whoever takes a Model takes these,
/// too, and opens them for itself. Copies share what is open.
class Model {
 public:
  /// @throws Error naming the file, if one is missing or not as it should be, or its model_type is none that we know.
  Model(const std::filesystem::path& folder, const ReadOptions& options = {}) : Model(opened(folder, options)) {}
  /// Of a path however it is written: "folder".
  template <std::convertible_to<std::filesystem::path> Folder>
  Model(const Folder& folder, const ReadOptions& options = {}) : Model(std::filesystem::path(folder), options) {}

  /// Of what was read already, or never was in a folder.
  /// @throws Error as above.
  Model(Config config, Tensors tensors) : Model(of_parts(std::move(config), std::move(tensors))) {}

  const std::filesystem::path& folder() const { return folder_; }

  /// For messages: its folder; or its config's file, if it was never in one.
  std::string place() const { return folder_.empty() ? config().file() : utf8(folder_); }

  const Config& config() const { return *main().config; }  ///< As it was read; what is asked of it counts as read.
  const Architecture& architecture() const { return *main().architecture; }  ///< What a model of its type is made of.

  /// Of the MoE layers; where these differ in a limit of their activation, of the first.
  const MoeShape& shape() const { return main().shape; }

  /// The same of the tower that a block, or any tensor, belongs to by its name: Qwen3-Omni has a thinker, of which the
  /// above speak, and a talker.
  const Config& config(std::string_view block) const { return *tower_of(block).config; }
  /// As config(block).
  const Architecture& architecture(std::string_view block) const { return *tower_of(block).architecture; }
  const MoeShape& shape(std::string_view block) const { return tower_of(block).shape; }  ///< As config(block).

  /// All of them, whatever they belong to, as the files have them.
  const Tensors& tensors() const { return *tensors_; }

  /// The same, but what is coded below a block, or beside it and part of it, is one tensor of all its numbers.
  /// @param lender  who repacks what it has read, where codes are not used as they lie; null: they are repacked now
  /// @throws Error naming file, tensor and what is wrong, if what is there makes no weights.
  template <class BuiltAs = detail::Flags>
  std::shared_ptr<const Tensors> weights(const std::string& block, ExpertLender* lender = nullptr) const;

  /// One of them as numbers of this type, whatever floating-point type they are stored in: read("model.norm.weight").
  /// @throws Error if there is no tensor of this name, or it holds no such numbers.
  template <std::floating_point Scalar = float>
  Weight<Scalar> read(std::string_view name) const {
    return tensors_->read<Scalar>(name);
  }

  /// What layer() takes for each MoE layer, in order: "model.layers.3.mlp", …. Layers that are dense are none.
  const std::vector<std::string>& moe_blocks() const { return moe_blocks_; }

  /// From whom its layers borrow their experts; null: they are read where files are mapped.
  const std::shared_ptr<ExpertLender>& lender() const { return lender_; }

  /// MoE layers and dense FFNs, in order.
  template <class BuiltAs = detail::Flags>
  std::vector<Block> blocks() const;

  /// The MoE layer below a prefix: load_layer().
  template <class Scalar = float>
  LoadedLayer<Scalar> layer(const std::string& prefix) const {
    return detail::load_layer<Scalar, detail::Flags>(*this, prefix);
  }

  /// The dense FFN below a prefix, a layer's or a shared expert's: a DenseLayer, of the width of its tensors and with
  /// the activation of config.json.
  /// @throws Error naming the file and tensor, if one is missing or does not fit.
  template <class Scalar = float>
  AnyLayer<Scalar> ffn(const std::string& prefix) const {
    return detail::load_ffn<Scalar, detail::Flags>(*this, prefix);
  }

 protected:
  /// From now on layers that are loaded lease their experts from it.
  void borrow_from(std::shared_ptr<ExpertLender> lender) { lender_ = std::move(lender); }
  const std::shared_ptr<const Tensors>& shared_tensors() const { return tensors_; }

 private:
  /// @param architecture  null for that of the model type
  template <class Open>
  Model(std::filesystem::path folder, Config config, std::shared_ptr<const Architecture> architecture, const Open& open)
      : folder_(std::move(folder)),
        towers_(towers(std::make_shared<const Config>(std::move(config)), std::move(architecture))),
        tensors_(std::make_shared<const Tensors>(open())) {
    for (Tower& tower : towers_) tower.quantization = detail::quantization_of(*tower.config, folder_);
    moe_blocks_ = detail::blocks_in(*tensors_, architecture_of_names());
    for (Tower& tower : towers_) {
      const auto first =
          std::ranges::find_if(moe_blocks_, [&](const std::string& block) { return &tower_of(block) == &tower; });
      if (first == moe_blocks_.end() && &tower != &towers_[0]) continue;
      const std::string block = first == moe_blocks_.end() ? "" : *first;
      tower.shape = moe_shape(*tower.config, *tower.architecture, block);
      detail::require_all_layers(*tower.config, *tensors_, block);
    }
  }

  template <class BuiltAs = detail::Flags>
  static Model opened(const std::filesystem::path& path, const ReadOptions& options);
  template <class BuiltAs = detail::Flags>
  static Model of_parts(Config config, Tensors tensors);

  static Model of_folder(const std::filesystem::path& folder, const ReadOptions& options) {
    Config config = Config::open(detail::config_file_in(folder));
    config.set_hub_code(options.hub_code);
    return {folder, std::move(config), nullptr, [&] { return Tensors::open(folder, options.access); }};
  }

  static Model of_gguf(const std::filesystem::path& file, const ReadOptions& options) {
    GgufModel all = translate_gguf(read_gguf(file, options.access), utf8(file));
    return {file, std::move(all.config), std::make_shared<const Architecture>(all.architecture),
            [&] { return std::move(all.tensors); }};
  }

  /// The table's, which stays.
  static std::shared_ptr<const Architecture> known_architecture(const Config& config) {
    return {std::shared_ptr<const void>(), &architecture_of(config)};
  }

  /// A part of the model with layers and settings of its own.
  struct Tower {
    std::string name;  // "talker"; of the first ""
    std::shared_ptr<const Config> config;
    std::shared_ptr<const Architecture> architecture;
    Quantization quantization = {};
    MoeShape shape = {};
  };

  /// The first, and those beside it whose types are known.
  static std::vector<Tower> towers(std::shared_ptr<const Config> config,
                                   std::shared_ptr<const Architecture> architecture) {
    if (!architecture) architecture = known_architecture(*config);
    std::vector<Tower> all = {{"", config, std::move(architecture)}};
    for (const auto& [name, its] : config->towers()) {
      if (find_architecture(its->text("model_type")) != nullptr) all.push_back({name, its, known_architecture(*its)});
    }
    return all;
  }

  const Tower& main() const { return towers_[0]; }

  /// By a part of its name, "talker" of "talker.model.layers.3.mlp"; else the first.
  const Tower& tower_of(std::string_view name) const {
    const std::string parts = towers_.size() == 1 ? std::string() : '.' + std::string(name) + '.';
    for (std::size_t i = 1; i < towers_.size(); ++i) {
      if (parts.find('.' + towers_[i].name + '.') != parts.npos) return towers_[i];
    }
    return main();
  }

  std::function<const Architecture&(std::string_view)> architecture_of_names() const {
    return [this](std::string_view name) -> const Architecture& { return *tower_of(name).architecture; };
  }

  std::filesystem::path folder_;
  std::vector<Tower> towers_;
  std::shared_ptr<const Tensors> tensors_;
  std::vector<std::string> moe_blocks_;
  std::shared_ptr<ExpertLender> lender_;
};

template <class BuiltAs>
Model Model::opened(const std::filesystem::path& path, const ReadOptions& options) {
  return detail::is_gguf(path) ? of_gguf(path, options) : of_folder(path, options);
}

template <class BuiltAs>
Model Model::of_parts(Config config, Tensors tensors) {
  return {{}, std::move(config), nullptr, [&] { return std::move(tensors); }};
}

template <class BuiltAs>
std::shared_ptr<const Tensors> Model::weights(const std::string& block, ExpertLender* lender) const {
  const Tower& tower = tower_of(block);
  return detail::with_coded_weights(tensors_, tower.quantization, block, *tower.architecture, lender);
}

template <class BuiltAs>
std::vector<Block> Model::blocks() const {
  std::vector<Block> all;
  for (const std::string& name : moe_blocks_) all.push_back({name, true});
  for (const std::string& name : detail::dense_blocks(*tensors_, moe_blocks_, architecture_of_names())) {
    all.push_back({name, false});
  }
  std::ranges::sort(all, {}, [](const Block& block) { return detail::in_order_of_numbers(block.name); });
  return all;
}

namespace detail {

/// Does it hold tensors, and is called as `sparse` is, but for its number? "model.layers.0.mlp" of DeepSeek.
inline bool is_dense_layer(const Tensors& tensors, const std::string& block, const std::string& sparse) {
  const auto last_name = [](const std::string& name) { return name.substr(name.rfind('.') + 1); };
  return !block.empty() && last_name(block) == last_name(sparse) &&
         std::ranges::any_of(tensors.names(), [&](const auto& name) { return name.starts_with(block + "."); });
}

/// The block's name: that which was given, or without its last dot.
inline std::string block_name(const Model& model, const std::string& prefix) {
  if (!prefix.ends_with('.')) return prefix;
  const bool is_name =
      std::ranges::any_of(model.tensors().names(), [&](const auto& name) { return name.starts_with(prefix + "."); });
  return is_name ? prefix : prefix.substr(0, prefix.size() - 1);
}

/// @throws Error naming the nearest block, if this is none: a dense layer, or a name that is spelt otherwise here.
inline void check_block(const Model& model, const std::string& block) {
  const std::string folder = model.place();
  const std::vector<std::string>& blocks = model.moe_blocks();
  if (std::ranges::count(blocks, block) > 0) return;
  if (blocks.empty()) {
    fail(folder, ": no MoE block \"", block, "\", nor any: no tensor is called \"",
         alternatives(model.architecture().experts)[0], "*\"");
  }
  const auto nearest =
      std::ranges::min_element(blocks, {}, [&](const auto& candidate) { return edit_distance(candidate, block); });
  const char* const is =
      is_dense_layer(model.tensors(), block, *nearest) ? ": this one is a dense layer, without experts" : "";
  fail(folder, ": no MoE block \"", block, "\" among ", blocks.size(), is, "; did you mean \"", *nearest, "\"?");
}

}  // namespace detail

#if defined(MOE_IO_COMPILED)
extern template Model Model::opened<detail::Flags>(const std::filesystem::path&, const ReadOptions&);
extern template Model Model::of_parts<detail::Flags>(Config, Tensors);
extern template std::shared_ptr<const Tensors> Model::weights<detail::Flags>(const std::string&, ExpertLender*) const;
extern template std::vector<Block> Model::blocks<detail::Flags>() const;
#endif

}  // namespace moe::inline MOE_TARGET::io
