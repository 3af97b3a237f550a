/// @file  The adapters of a layer by the names of the matrices that they lie beside.
#pragma once

#include <string>
#include <vector>

#include "moe/core/types.hpp"
#include "moe/layers/dense.hpp"
#include "moe/layers/moe_layer.hpp"
#include "moe/layers/shared.hpp"
#include "moe/lora/adapter.hpp"
#include "moe/lora/bank.hpp"
#include "moe/lora/router.hpp"
#include "moe/routers/filters/capacity.hpp"

namespace moe::inline MOE_TARGET {

/// One of a layer's, where it lies. It may be of rank 0.
template <class Scalar>
struct NamedAdapter {
  std::string matrix;  // "model.layers.3.mlp.experts.0.gate_proj"
  Adapter<Scalar>* adapter;
  Index out, in;  // the matrix is (out × in)
};

namespace detail {

template <class Scalar, class Part>
void list_adapters(const std::string&, Part&, std::vector<NamedAdapter<Scalar>>&) {}  // has none

template <class Scalar, class W, class Act>
void list_adapters(const std::string& name, LoraBank<W, Act>& bank, std::vector<NamedAdapter<Scalar>>& found) {
  bank.for_each_adapter([&](const std::string& matrix, Adapter<Scalar>& adapter, Index out, Index in) {
    found.push_back({name + "." + matrix, &adapter, out, in});
  });
}

template <class Scalar>
void list_adapters(const std::string& name, LoraRouter<Scalar>& router, std::vector<NamedAdapter<Scalar>>& found) {
  found.push_back({name, &router.adapter(), router.num_experts(), router.d_model()});
}

template <class Scalar, class R>
void list_adapters(const std::string& name, WithCapacity<R>& limited, std::vector<NamedAdapter<Scalar>>& found) {
  list_adapters(name, limited.router(), found);
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

template <class Scalar, class G>
void list_adapters(const std::string& name, DenseLayer<G>& layer, std::vector<NamedAdapter<Scalar>>& found) {
  list_adapters(name + ".expert", layer.expert(), found);
}

}  // namespace detail

/// All adapters of a layer, always in the same order. They are good as long as the layer neither moves nor dies.
/// @param name  of the layer in its model: "model.layers.3.mlp"
template <class Layer>
std::vector<NamedAdapter<typename Layer::Scalar>> named_adapters(const std::string& name, Layer& layer) {
  std::vector<NamedAdapter<typename Layer::Scalar>> found;
  detail::list_adapters(name, layer, found);
  return found;
}

}  // namespace moe::inline MOE_TARGET
