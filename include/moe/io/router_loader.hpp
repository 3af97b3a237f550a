/// @file  Makes the router of a block of what its tensors say.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "moe/core/types.hpp"
#include "moe/io/architecture.hpp"
#include "moe/io/block_reader.hpp"
#include "moe/io/error.hpp"
#include "moe/io/expert_tensors.hpp"
#include "moe/io/tensor.hpp"
#include "moe/models/moe_shape.hpp"
#include "moe/routers/filters/capacity.hpp"
#include "moe/routers/linear_top_k.hpp"
#include "moe/routers/mlp_top_k.hpp"
#include "moe/routers/normed_top_k.hpp"
#include "moe/routers/shaped_top_k.hpp"
#include "moe/routers/sparse_mixer.hpp"
#include "moe/routers/token_hash.hpp"
#include "moe/routers/top_k_by_modality.hpp"

namespace moe::inline MOE_TARGET::io::detail {

/// Makes the router of a block.
template <class Scalar>
class RouterLoader {
 public:
  explicit RouterLoader(const BlockReader& block) : block_(block) {}

  /// The router, as a make wants it.
  template <class Make>
  typename Make::Router load(const Make& make) const {
    if (const auto* const mixer = std::get_if<SparseMixerOptions>(&block_.shape.router)) {
      return make.router(SparseMixer<Scalar>(router_weight(), *mixer));
    }
    if (block_.names.router_kind == RouterKind::normed) return make.router(normed_top_k());
    if (is_hashed()) return make.router(hash());
    if (block_.is_by_modality()) return make.router(top_k_by_modality());
    if (block_.names.router_kind == RouterKind::carried) return make.router(mlp_top_k());
    if (block_.names.router_kind == RouterKind::joint) return make.router(joint_top_k());
    if (const LogitShape shape = logit_shape(); shape.multiplier != 1 || shape.soft_cap != 0) {
      return make.router(
          ShapedTopK<Scalar>(router_weight(), block_.top_k_options(), shape, router_bias(), selection_bias()));
    }
    if (block_.names.capacity == nullptr) return make.router(top_k());
    return make.router(WithCapacity(top_k(), block_.names.capacity(block_.config)));
  }

  /// The usual one, without what filters its routes.
  LinearTopK<Scalar> top_k() const {
    return {router_weight(), block_.top_k_options(), router_bias(), selection_bias()};
  }

 private:
  /// A copy in Scalar: routers decide in full precision, and are small.
  Weight<Scalar> router_weight() const {
    const Vector<Scalar> numbers = block_.finite<Scalar>(block_.names.router, {block_.num_outputs(), block_.d()});
    return Eigen::Map<const Weight<Scalar>>(numbers.data(), block_.num_outputs(), block_.d());
  }

  LogitShape logit_shape() const {
    return {.multiplier = block_.names.logit_scale ? block_.names.logit_scale(block_.config) : 1,
            .soft_cap = block_.names.logit_cap ? block_.names.logit_cap(block_.config) : 0};
  }

  /// Its weights are multiplied by a number that was learned, too.
  LinearTopK<Scalar> joint_top_k() const {
    TopKOptions options = block_.top_k_options();
    options.scale *= double(block_.finite<Scalar>("gate.global_scale", {1})(0));
    return {router_weight(), options, router_bias(), selection_bias()};
  }

  Vector<Scalar> router_bias() const {
    return block_.vector_if<Scalar>(block_.shape.router_bias, block_.names.router_bias, {block_.num_outputs()});
  }

  Vector<Scalar> selection_bias() const {
    if (!block_.shape.selection_bias) return {};
    const Index size = block_.num_outputs() - block_.top_k_options().always_chosen;
    return block_.finite<Scalar>(block_.names.selection_bias, block_.names.selection_bias_is_a_row
                                                                  ? std::vector<Index>{1, size}
                                                                  : std::vector{size});
  }

  NormedTopK<Scalar> normed_top_k() const {
    return {router_weight(), block_.finite<Scalar>("router.scale", {block_.d()}),
            block_.finite<Scalar>("router.per_expert_scale", {block_.num_outputs()}), block_.top_k_options(),
            block_.config.number("rms_norm_eps")};
  }

  /// ERNIE 4.5 VL's, whose weights the hub's files store (in × out).
  TopKByModality<Scalar> top_k_by_modality() const {
    const Index n = block_.shape.num_experts;
    const Vector<Scalar> biases = block_.finite<Scalar>(block_.names.selection_bias, {2, n});
    const auto of = [&](std::string_view name, Index which) {
      const Vector<Scalar> numbers = block_.finite<Scalar>(name, {block_.d(), n});
      const Weight<Scalar> stored = Eigen::Map<const Weight<Scalar>>(numbers.data(), block_.d(), n);
      return LinearTopK<Scalar>(stored.transpose(), block_.top_k_options(), {}, biases.segment(which * n, n));
    };
    return TopKByModality<Scalar>({of(block_.names.router, 0), of(second_modality, 1)});
  }

  /// ZAYA's: the first layer hears none before it, and has no scale. All else is in each.
  MlpTopK<Scalar> mlp_top_k() const {
    const Tensor down = block_.tensors.at("gate.down_proj.weight");
    const Index size = block_.config.integer("router_hidden_size");
    require_shape(down, {size, block_.d()});
    const auto matrix = [&](std::string_view name, Index rows, Index cols) -> Weight<Scalar> {
      const Vector<Scalar> numbers = block_.finite<Scalar>(name, {rows, cols});
      return Eigen::Map<const Weight<Scalar>>(numbers.data(), rows, cols);
    };
    const auto vector = [&](std::string_view name) { return block_.finite<Scalar>(name, {size}); };
    const std::string_view scale = "gate.router_states_scale";
    return {{.down = matrix("gate.down_proj.weight", size, block_.d()),
             .down_bias = vector("gate.down_proj.bias"),
             .state_scale = block_.vector_if<Scalar>(block_.tensors.contains(scale), scale, {size}),
             .norm_scale = vector("gate.router_mlp.norm.weight"),
             .fc1 = matrix("gate.router_mlp.fc1.weight", size, size),
             .fc1_bias = vector("gate.router_mlp.fc1.bias"),
             .fc2 = matrix("gate.router_mlp.fc2.weight", size, size),
             .fc2_bias = vector("gate.router_mlp.fc2.bias"),
             .out = matrix(block_.names.router, block_.num_outputs(), size)},
            block_.top_k_options(),
            selection_bias(),
            block_.config.number("rms_norm_eps")};
  }

  bool is_hashed() const {
    return block_.names.router_kind == RouterKind::hashed && block_.tensors.contains("gate.tid2eid");
  }

  TokenHash<Scalar> hash() const {
    const Tensor table = block_.tensors.at("gate.tid2eid");
    const auto ids = as<std::int64_t>(table);
    if (table.shape.size() != 2 || table.shape[1] != block_.shape.top_k) {
      fail(to_string(table), " has shape ", to_string(table.shape), ", expected [vocabulary, ", block_.shape.top_k,
           "]");
    }
    HashTable experts(block_.shape.top_k, table.shape[0]);
    std::ranges::copy(ids, experts.data());
    return {router_weight(), block_.top_k_options(), std::move(experts)};
  }

  const BlockReader& block_;
};

}  // namespace moe::inline MOE_TARGET::io::detail
