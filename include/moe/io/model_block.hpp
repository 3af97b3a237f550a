/// @file  A layer that is to take the place of a model's block.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "moe/core/parameters.hpp"
#include "moe/io/error.hpp"
#include "moe/lora/adapter.hpp"
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

}  // namespace moe::inline MOE_TARGET::io
