/// @file  The adapters of a layer by the names of the matrices that they lie beside.
#pragma once

#include <algorithm>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "moe/core/parameters.hpp"
#include "moe/core/types.hpp"
#include "moe/layers/affine_output.hpp"
#include "moe/layers/dense.hpp"
#include "moe/layers/moe_layer.hpp"
#include "moe/layers/shared.hpp"
#include "moe/lora/adapter.hpp"
#include "moe/lora/bank.hpp"
#include "moe/lora/router.hpp"
#include "moe/routers/filters/capacity.hpp"
#include "moe/routers/filters/replay.hpp"
#include "moe/routers/filters/second_expert.hpp"

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
  Index out, in;                                           // the matrix is (out × in)
  std::shared_ptr<const AdaptedLayer<Scalar>> layer = {};  // that it is of, with others
};

namespace detail {

template <class Scalar, class Part>
void list_adapters(const std::string&, Part&, std::vector<NamedAdapter<Scalar>>&) {}  // has none

template <class Scalar, class W, class Act>
void list_adapters(const std::string& name, LoraBank<W, Act>& bank, std::vector<NamedAdapter<Scalar>>& found) {
  bank.for_each_adapter([&](const std::string& matrix, Adapter<Scalar>& adapter, Index out, Index in) {
    found.push_back({name + "." + matrix, &adapter, out, in, {}});
  });
}

template <class Scalar>
void list_adapters(const std::string& name, LoraRouter<Scalar>& router, std::vector<NamedAdapter<Scalar>>& found) {
  found.push_back({name, &router.adapter(), router.num_experts(), router.d_model(), {}});
}

template <class Scalar, class R>
void list_adapters(const std::string& name, WithCapacity<R>& limited, std::vector<NamedAdapter<Scalar>>& found) {
  list_adapters(name, limited.router(), found);
}

template <class Scalar, class R>
void list_adapters(const std::string& name, WithSecondExpert<R>& filter, std::vector<NamedAdapter<Scalar>>& found) {
  list_adapters(name, filter.router(), found);
}

template <class Scalar, class R>
void list_adapters(const std::string& name, Replay<R>& replay, std::vector<NamedAdapter<Scalar>>& found) {
  list_adapters(name, replay.router(), found);
}

template <class Scalar, class R, class G>
void list_adapters(const std::string& name, MoeLayer<R, G>& layer, std::vector<NamedAdapter<Scalar>>& found) {
  list_adapters(name + ".gate", layer.router(), found);
  list_adapters(name + ".experts", layer.experts(), found);
}

template <class Scalar, class Layer, class G>
void list_adapters(const std::string& name, WithSharedExpert<Layer, G>& layer,
                   std::vector<NamedAdapter<Scalar>>& found) {
  list_adapters(name, layer.layer(), found);
  list_adapters(name + ".shared_expert", layer.shared(), found);
}

template <class Scalar, class L>
void list_adapters(const std::string& name, AffineOutput<L>& layer, std::vector<NamedAdapter<Scalar>>& found) {
  list_adapters(name, layer.layer(), found);
}

template <class Scalar, class G>
void list_adapters(const std::string& name, DenseLayer<G>& layer, std::vector<NamedAdapter<Scalar>>& found) {
  list_adapters(name + ".expert", layer.expert(), found);
}

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

/// All adapters of a layer, always in the same order. They are good as long as the layer neither moves nor dies.
/// @param name  of the layer in its model: "model.layers.3.mlp"
template <class Layer>
std::vector<NamedAdapter<typename Layer::Scalar>> named_adapters(const std::string& name, Layer& layer) {
  std::vector<NamedAdapter<typename Layer::Scalar>> found;
  detail::list_adapters(name, layer, found);
  const auto whose = std::make_shared<const AdaptedLayer<typename Layer::Scalar>>(
      AdaptedLayer<typename Layer::Scalar>{name, detail::beside_adapters(layer, found)});
  for (auto& named : found) named.layer = whose;
  return found;
}

}  // namespace moe::inline MOE_TARGET
