/// @file  The files of a model, opened once for all of its layers.
#pragma once

#include <algorithm>
#include <concepts>
#include <cstddef>
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "moe/io/architectures.hpp"
#include "moe/io/config.hpp"
#include "moe/io/impostors.hpp"
#include "moe/io/safetensors.hpp"
#include "moe/models/moe_shape.hpp"

namespace moe::inline MOE_TARGET::io {

namespace detail {

/// What all names of a block's experts begin with: "experts." in most models.
inline std::string experts_prefix(const Architecture& architecture) {
  return architecture.layout == ExpertLayout::fused ? std::string(architecture.fused_gate_up) : "experts.";
}

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

/// What stands before the experts in names, each once.
inline std::vector<std::string> blocks_in(const Tensors& tensors, const std::string& experts) {
  std::vector<std::string> blocks;
  for (const std::string& name : tensors.names()) {  // in alphabetical order: those of a block side by side
    const std::size_t end = ("." + name).find("." + experts);
    if (end == std::string::npos) continue;
    std::string block = name.substr(0, end == 0 ? 0 : end - 1);
    if (blocks.empty() || blocks.back() != block) blocks.push_back(std::move(block));
  }
  std::ranges::sort(blocks, {}, in_order_of_numbers);
  return blocks;
}

}  // namespace detail

/// A model's folder, open: config.json and all tensors of its *.safetensors. A folder converts to it, so whoever takes
/// ModelFiles takes a folder, too, and opens that for itself. Copies share what is open.
class ModelFiles {
 public:
  /// @throws Error naming the file, if one is missing or not as it should be, or its model_type is none that we know.
  ModelFiles(const std::filesystem::path& folder)
      : folder_(folder),
        config_(std::make_shared<const Config>(Config::open(detail::config_file_in(folder)))),
        architecture_(&architecture_of(*config_)),
        shape_(moe_shape(*config_)),
        tensors_(Tensors::open(folder)),
        moe_blocks_(detail::blocks_in(tensors_, detail::experts_prefix(*architecture_))) {}
  template <std::convertible_to<std::filesystem::path> Folder>
  ModelFiles(const Folder& folder) : ModelFiles(std::filesystem::path(folder)) {}

  const std::filesystem::path& folder() const { return folder_; }
  const Config& config() const { return *config_; }
  const Architecture& architecture() const { return *architecture_; }

  /// Of each MoE layer.
  const MoeShape& shape() const { return shape_; }

  /// All of them, whatever they belong to: tensors().read<float>("model.norm.weight").
  const Tensors& tensors() const { return tensors_; }

  /// What load_layer() takes for each MoE layer, in order: "model.layers.3.mlp", …. Layers that are dense are none.
  const std::vector<std::string>& moe_blocks() const { return moe_blocks_; }

 private:
  std::filesystem::path folder_;
  std::shared_ptr<const Config> config_;
  const Architecture* architecture_;
  MoeShape shape_;
  Tensors tensors_;
  std::vector<std::string> moe_blocks_;
};

}  // namespace moe::inline MOE_TARGET::io
