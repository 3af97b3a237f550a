/// @file  Folders of PEFT's adapters, opened once for all layers of a model.
#pragma once

#include <algorithm>
#include <array>
#include <compare>
#include <concepts>
#include <cstddef>
#include <filesystem>
#include <iterator>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "moe/core/check.hpp"
#include "moe/core/types.hpp"
#include "moe/io/architecture.hpp"
#include "moe/io/error.hpp"
#include "moe/io/model.hpp"
#include "moe/io/peft_config.hpp"
#include "moe/io/safetensors.hpp"

namespace moe::inline MOE_TARGET::io {

namespace detail {

/// A layer of a model, by what all writers call it: number 3 of "layers", where "model.layers.3",
/// "language_model.model.layers.3" and "model.language_model.layers.3" are the same.
struct LayerOfModel {
  std::string stem;
  Index number = -1;  // −1 of what is of no layer

  friend auto operator<=>(const LayerOfModel&, const LayerOfModel&) = default;
};

struct NameInLayer {
  LayerOfModel layer;
  std::string rest;  // behind the number: "mlp.gate"
};

inline NameInLayer in_layer_of_model(std::string_view name) {
  constexpr auto around = std::to_array<std::string_view>({"model", "language_model", "text_model", "backbone"});
  std::string stem;
  for (std::size_t first = 0; first < name.size();) {
    const std::size_t dot = std::min(name.find('.', first), name.size());
    const std::string_view part = name.substr(first, dot - first);
    if (!part.empty() && part.size() < 9 && part.find_first_not_of("0123456789") == part.npos) {
      return {{stem, std::stol(std::string(part))}, std::string(name.substr(std::min(dot + 1, name.size())))};
    }
    if (std::ranges::count(around, part) == 0) stem += (stem.empty() ? "" : ".") + std::string(part);
    first = dot + 1;
  }
  return {{}, std::string(name)};
}

/// A tensor of a block's adapters: "base_model.model.model.layers.3.mlp.gate.lora_A.weight" is "gate.lora_A.weight".
struct NameInBlock {
  std::string name, relative;
};

/// One folder, open.
struct AdapterFile {
  struct Name {
    std::string name, rest;  // in full; behind the number of its layer
  };

  explicit AdapterFile(const std::filesystem::path& its_folder)
      : folder(its_folder),
        config(folder / "adapter_config.json"),
        tensors(Tensors::open(folder / "adapter_model.safetensors")) {
    for (const std::string& name : tensors.names()) {
      if (!name.starts_with(peft_prefix)) {
        fail(to_string(tensors.at(name)), " does not begin with \"", peft_prefix, "\", as all of PEFT's do");
      }
      auto [layer, rest] = in_layer_of_model(std::string_view(name).substr(peft_prefix.size()));
      names[layer].push_back({name, std::move(rest)});
    }
  }

  /// What it has of a block. What transformers calls a block is not always what the model's file calls it: Mixtral's
  /// block_sparse_moe is mlp there.
  std::vector<NameInBlock> of_block(const Model& model, const std::string& block) const {
    const auto [layer, tail] = in_layer_of_model(block);
    if (const Architecture* const its = model.architecture(block).of_adapters) return of_gguf_block(layer, *its);
    const auto here = names.find(layer);
    if (here == names.end()) return {};
    const std::size_t dot = tail.rfind('.');
    const std::string around = dot == tail.npos ? "" : tail.substr(0, dot + 1);
    std::vector<std::string> prefixes{tail.empty() ? "" : tail + '.'};
    if (std::ranges::count(usual, std::string_view(tail).substr(around.size())) > 0) {
      const std::string above = block.substr(0, block.size() - (tail.size() - around.size()));
      for (const std::string_view name : usual) {
        const std::string other = std::string(name) + '.';
        if (!model.tensors().any_below(above + other)) prefixes.push_back(around + other);
      }
    }
    std::vector<NameInBlock> found;
    for (const auto& [name, rest] : here->second) {
      if (const auto relative = relative_name(rest, prefixes, around, model.architecture(block))) {
        found.push_back({name, *relative});
      }
    }
    return found;
  }

  std::filesystem::path folder;
  PeftConfig config;
  Tensors tensors;
  std::map<LayerOfModel, std::vector<Name>> names;

 private:
  static constexpr auto usual =
      std::to_array<std::string_view>({"mlp", "block_sparse_moe", "moe", "feed_forward", "ffn"});

  /// A layer of GGUF is "blk.3" as a whole; what was trained in transformers calls it "layers.3", and the block in it
  /// as its model does. What save_adapters() wrote has the file's own name.
  std::vector<NameInBlock> of_gguf_block(const LayerOfModel& layer, const Architecture& architecture) const {
    std::vector<std::string> prefixes;
    if (!architecture.scope.empty()) prefixes.emplace_back("");
    for (const std::string_view name : usual) prefixes.push_back(std::string(name) + '.');
    const std::map<LayerOfModel, std::vector<std::string>> places = {{{"layers", layer.number}, prefixes},
                                                                     {layer, {""}}};
    std::vector<NameInBlock> found;
    for (const auto& [its, below] : places) {
      const auto here = names.find(its);
      if (here == names.end()) continue;
      for (const auto& [name, rest] : here->second) {
        if (const auto relative = relative_name(rest, below, "", architecture)) found.push_back({name, *relative});
      }
    }
    return found;
  }

  static std::optional<std::string> relative_name(const std::string& rest, const std::vector<std::string>& prefixes,
                                                  const std::string& around, const Architecture& architecture) {
    // Where a block is a decoder layer, which holds other things, save_adapters() writes these.
    constexpr auto ours =
        std::to_array<std::string_view>({"gate.", "experts.", "shared_expert.", "shared_expert_gate."});
    const auto begins = [](const std::string& name) {
      return [&name](std::string_view with) { return name.starts_with(with); };
    };
    for (const std::string& prefix : prefixes) {
      if (!rest.starts_with(prefix)) continue;
      std::string relative = rest.substr(prefix.size());
      if (std::ranges::any_of(alternatives(architecture.scope), begins(relative))) return relative;
      if (std::ranges::any_of(ours, begins(relative))) return relative;
    }
    if (!rest.starts_with(around)) return std::nullopt;
    const std::string beside = "../" + rest.substr(around.size());  // such as Step 3.5's shared expert
    for (const std::string_view shared : alternatives(architecture.shared)) {
      if (shared.starts_with("../") && beside.starts_with(shared)) return beside;
    }
    return std::nullopt;
  }
};

}  // namespace detail

/// Adapters as Hugging Face's PEFT writes them: a folder with adapter_config.json and adapter_model.safetensors; or
/// several, all of which act at once. A folder converts to it. Copies share what is open.
class Adapters {
 public:
  /// @throws Error naming the file, if one is missing or not as it should be, or if its adapters are none of LoRA, or
  /// compute something else beside.
  Adapters(const std::vector<std::filesystem::path>& folders) {
    require(!folders.empty(), "Adapters: folders.size() is 0, expected at least 1");
    auto files = std::make_shared<std::vector<detail::AdapterFile>>();
    for (const std::filesystem::path& folder : folders) files->emplace_back(folder);
    files_ = std::move(files);
  }
  /// Of one folder, however its path is written: "folder".
  template <std::convertible_to<std::filesystem::path> Folder>
  Adapters(const Folder& folder) : Adapters(std::vector<std::filesystem::path>{folder}) {}

  const std::vector<detail::AdapterFile>& files() const { return *files_; }  ///< One a folder, open.

  /// Does a file have anything of this MoE block? "model.layers.3.mlp"
  bool adapt(const Model& model, const std::string& block) const {
    return std::ranges::any_of(*files_, [&](const auto& file) { return !file.of_block(model, block).empty(); });
  }

  /// The tensors that are of no MoE block of a model, such as attention's: load_lora_layer() leaves them to others.
  std::vector<std::string> beside_blocks(const Model& model) const {
    std::vector<std::string> others;
    for (const auto& file : *files_) {
      std::set<std::string> of_blocks;
      for (const std::string& block : model.moe_blocks()) {
        for (const auto& [name, relative] : file.of_block(model, block)) of_blocks.insert(name);
      }
      std::ranges::copy_if(file.tensors.names(), std::back_inserter(others),
                           [&](const std::string& name) { return !of_blocks.contains(name); });
    }
    return others;
  }

 private:
  std::shared_ptr<const std::vector<detail::AdapterFile>> files_;
};

}  // namespace moe::inline MOE_TARGET::io
