/// @file  Layers with adapters as layers without.
#pragma once

#include "moe/layers/dense.hpp"
#include "moe/layers/moe_layer.hpp"
#include "moe/layers/shared.hpp"
#include "moe/lora/bank.hpp"
#include "moe/lora/router.hpp"
#include "moe/routers/filters/capacity.hpp"

namespace moe::inline MOE_TARGET {

/// The same layer, router or group of experts with its adapters added into weights of its own: it computes the same, to
/// rounding, at the cost of one that never had any. What has no adapters is copied.
template <class Part>
Part merged(const Part& part) {
  return part;
}

template <class R>
auto merged(const WithCapacity<R>& limited) {
  return WithCapacity(merged(limited.router()), limited.options());
}

template <class R, class G>
auto merged(const MoeLayer<R, G>& layer) {
  return MoeLayer(merged(layer.router()), merged(layer.experts()));
}

template <class Layer, class G>
auto merged(const WithSharedExpert<Layer, G>& layer) {
  return WithSharedExpert(merged(layer.layer()), merged(layer.shared()), layer.gate());
}

template <class G>
auto merged(const DenseLayer<G>& layer) {
  return DenseLayer(merged(layer.expert()));
}

}  // namespace moe::inline MOE_TARGET
