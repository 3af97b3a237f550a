/// @file  The adapters of a layer by the names of the matrices that they lie beside.
#pragma once

#include <algorithm>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "moe/core/parameters.hpp"
#include "moe/core/types.hpp"
#include "moe/lora/adapter.hpp"

namespace moe::inline MOE_TARGET {

/// A layer that has adapters, by the name that it has in its model.
template <class Scalar>
struct AdaptedLayer {
  std::string name;                       // "model.layers.3.mlp"
  std::vector<Parameter<Scalar>> beside;  // what learns and is no adapter of these: "shared_expert_gate.weight"
};

/// One of a layer's, where it lies. It may be of rank 0.
template <class Scalar>
struct NamedAdapter {
  std::string matrix;  // "model.layers.3.mlp.experts.0.gate_proj"
  Adapter<Scalar>* adapter;
  std::shared_ptr<const AdaptedLayer<Scalar>> layer = {};  // that it is of, with others
};

namespace detail {

/// Its parameters that learn and are none of these adapters'.
template <class Layer, class Scalar = typename Layer::Scalar>
std::vector<Parameter<Scalar>> beside_adapters(Layer& layer, const std::vector<NamedAdapter<Scalar>>& adapters) {
  std::vector<Parameter<Scalar>> all;
  try {
    all = parameters(layer);
  } catch (const std::invalid_argument&) {
    return {};  // weights of it are mapped and not frozen: it serves, and cannot learn
  }
  std::erase_if(all, [&](const Parameter<Scalar>& parameter) {
    return std::any_of(adapters.begin(), adapters.end(), [&](const NamedAdapter<Scalar>& named) {
      return parameter.data == named.adapter->a.data() || parameter.data == named.adapter->b.data();
    });
  });
  return all;
}

}  // namespace detail

/// All adapters of a layer, whatever is wrapped around them, always in the same order. They are good as long as the
/// layer neither moves nor dies.
/// @param name  of the layer in its model: "model.layers.3.mlp"
template <class Layer>
std::vector<NamedAdapter<typename Layer::Scalar>> named_adapters(const std::string& name, Layer& layer) {
  std::vector<NamedAdapter<typename Layer::Scalar>> found;
  for (auto& [part, adapter] : parts<Adapter<typename Layer::Scalar>>(layer)) {
    found.push_back({part.empty() ? name : name + "." + part, adapter, {}});
  }
  const auto whose = std::make_shared<const AdaptedLayer<typename Layer::Scalar>>(
      AdaptedLayer<typename Layer::Scalar>{name, detail::beside_adapters(layer, found)});
  for (auto& named : found) named.layer = whose;
  return found;
}

}  // namespace moe::inline MOE_TARGET
