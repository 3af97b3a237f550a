/// @file  Layers with adapters as layers without.
#pragma once

#include <cstddef>
#include <utility>
#include "moe/experts/joined_experts.hpp"
#include "moe/layers/affine_output.hpp"
#include "moe/layers/dense.hpp"
#include "moe/layers/moe_layer.hpp"
#include "moe/layers/residual_moe.hpp"
#include "moe/layers/shared.hpp"
#include "moe/layers/soft_moe.hpp"
#include "moe/lora/bank.hpp"
#include "moe/lora/router.hpp"
#include "moe/routers/filters/capacity.hpp"
#include "moe/routers/filters/replay.hpp"
#include "moe/routers/filters/second_expert.hpp"

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

template <class R>
auto merged(const WithSecondExpert<R>& filter) {
  return WithSecondExpert(merged(filter.router()), filter.options());
}

template <class R>
auto merged(const Replay<R>& replay) {
  return Replay(merged(replay.router()), replay.options());
}

template <class... Groups>
auto merged(const JoinedExperts<Groups...>& groups) {
  return [&]<std::size_t... i>(std::index_sequence<i...>) {
    return JoinedExperts(merged(groups.template group<i>())...);
  }(std::index_sequence_for<Groups...>{});
}

template <class R, class G>
auto merged(const MoeLayer<R, G>& layer) {
  return MoeLayer(merged(layer.router()), merged(layer.experts()));
}

template <class Layer, class G>
auto merged(const WithSharedExpert<Layer, G>& layer) {
  return WithSharedExpert(merged(layer.layer()), merged(layer.shared()), layer.gate());
}

template <class Layer, class G>
auto merged(const ResidualMoe<Layer, G>& layer) {
  return ResidualMoe(merged(layer.layer()), merged(layer.shared()), layer.weight(), layer.bias());
}

template <class G>
auto merged(const SoftMoe<G>& layer) {
  return SoftMoe(layer.slots(), merged(layer.experts()), layer.options(), layer.token_gain(), layer.slot_gain());
}

template <class L>
auto merged(const AffineOutput<L>& layer) {
  return AffineOutput(merged(layer.layer()), layer.scale(), layer.bias());
}

template <class G>
auto merged(const DenseLayer<G>& layer) {
  return DenseLayer(merged(layer.expert()));
}

}  // namespace moe::inline MOE_TARGET
