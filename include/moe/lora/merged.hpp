/// @file  Layers with adapters as layers without.
#pragma once

#include <stdexcept>
#include <type_traits>
#include <utility>
#include <vector>

#include "moe/core/parameters.hpp"
#include "moe/core/types.hpp"
#include "moe/experts/expert_list.hpp"
#include "moe/experts/expert_subset.hpp"
#include "moe/experts/joined_experts.hpp"
#include "moe/experts/latent_experts.hpp"
#include "moe/experts/normed_experts.hpp"
#include "moe/layers/affine_output.hpp"
#include "moe/layers/dense.hpp"
#include "moe/layers/moe_layer.hpp"
#include "moe/layers/normed_output.hpp"
#include "moe/layers/residual_moe.hpp"
#include "moe/layers/shared.hpp"
#include "moe/layers/soft_moe.hpp"
#include "moe/lora/adapter.hpp"
#include "moe/lora/bank.hpp"
#include "moe/lora/projection.hpp"
#include "moe/lora/router.hpp"
#include "moe/routers/filters/filtered_router.hpp"

namespace moe::inline MOE_TARGET {

/// The same layer, router or group of experts with its adapters added into weights of its own: it computes the same, to
/// rounding, at the cost of one that never had any. What has no adapters is copied.
/// @throws std::logic_error if adapters are left: a wrapper of yours around parts that have some needs a merged() of
/// its own beside it.
template <class Part>
Part merged(const Part& part) {
  Part copy = part;
  if constexpr (requires(ParameterVisitor<typename Part::Scalar>& visit) { visit_parameters(copy, visit); }) {
    if (!parts<Adapter<typename Part::Scalar>>(copy).empty()) {
      throw std::logic_error("merged: adapters are left in a wrapper that has no merged() of its own");
    }
  }
  return copy;
}

/// A router under the same filter, without adapters.
template <class R>
  requires requires(const R& router) { router.filter(); }
auto merged(const R& router) {
  return FilteredRouter(merged(router.router()), router.filter());
}

// --- groups of experts

template <class E>
auto merged(const ExpertList<E>& list) {
  std::vector<std::remove_cvref_t<decltype(merged(list[0]))>> experts;
  for (Index e = 0; e < list.num_experts(); ++e) experts.push_back(merged(list[e]));
  return ExpertList(std::move(experts));
}

template <class... Groups>
auto merged(const JoinedExperts<Groups...>& joined) {
  return [&]<std::size_t... i>(std::index_sequence<i...>) {
    return JoinedExperts(merged(joined.template group<i>())...);
  }(std::index_sequence_for<Groups...>{});
}

template <class G>
auto merged(const ExpertSubset<G>& subset) {
  return ExpertSubset(merged(subset.group()), subset.experts());
}

template <class G, class In, class Out>
auto merged(const LatentExperts<G, In, Out>& group) {
  return LatentExperts(merged(group.in()), merged(group.experts()), merged(group.out()), group.norm(), group.names(),
                       group.norm_of_answers());
}

template <class G>
auto merged(const NormedExperts<G>& group) {
  return NormedExperts(merged(group.experts()), group.norm(), group.name());
}

// --- layers

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
auto merged(const DenseLayer<G>& layer) {
  return DenseLayer(merged(layer.expert()));
}

template <class L>
auto merged(const AffineOutput<L>& layer) {
  return AffineOutput(merged(layer.layer()), layer.scale(), layer.bias());
}

template <class L>
auto merged(const NormedOutput<L>& layer) {
  return NormedOutput(merged(layer.layer()), layer.norm(), layer.name());
}

template <class G>
auto merged(const SoftMoe<G>& layer) {
  return SoftMoe(layer.slots(), merged(layer.experts()), layer.options(), layer.token_gain(), layer.slot_gain());
}

}  // namespace moe::inline MOE_TARGET
