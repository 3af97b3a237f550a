/// @file  Where a decoder's weights come from: the one place that knows how a model's files are read.
#pragma once

#include <moe/io/checkpoint.hpp>
#include <moe/io/model.hpp>
#include <moe/layers/any_layer.hpp>

#include <filesystem>
#include <string>
#include <vector>

namespace decoder {

using moe::Index;

/// The feed-forward part of a layer.
struct Ffn {
  moe::AnyLayer<float> layer;
  Index num_experts;  // 0: it is dense
};

/// A model's folder, open.
class Weights {
 public:
  explicit Weights(const std::filesystem::path& folder) : model_(folder) {}

  /// As float, whatever type it is stored in.
  /// @throws moe::io::Error naming file and tensor, if it is not there or its shape is another.
  moe::Weight<float> matrix(const std::string& name, Index rows, Index cols) const {
    return model_.tensors().read<float>(name, {rows, cols});
  }
  moe::Vector<float> vector(const std::string& name, Index size) const {
    return model_.tensors().read<float>(name, {size});
  }

  /// A mixture of experts where the file has one, else a dense FFN.
  /// @throws moe::io::Error if there is neither.
  Ffn ffn(const std::string& layer) const {
    for (const moe::io::Block& block : blocks_) {
      if (!block.name.starts_with(layer)) continue;
      if (!block.sparse) return {model_.ffn(block.name), 0};
      return {model_.layer(block.name).layer, model_.shape().num_experts};
    }
    throw moe::io::Error(model_.folder().string() + ": no feed-forward part below \"" + layer + "\"");
  }

 private:
  moe::io::Model model_;
  std::vector<moe::io::Block> blocks_ = model_.blocks();
};

}  // namespace decoder
