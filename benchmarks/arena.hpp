/// @file  Where contenders meet: one shape, the same weights, the same tokens.
#pragma once

#include <algorithm>
#include <cmath>
#include <memory>
#include <variant>
#include <vector>

#include "contender.hpp"
#include "machine.hpp"
#include "moe/experts/gated_ffn_bank.hpp"
#include "moe/layers/dense.hpp"
#include "moe/models/presets.hpp"
#include "moe/routers/linear_top_k.hpp"
#include "moe/runtime/executors/openmp.hpp"
#include "weight_pool.hpp"

namespace moe::bench {

template <class W>
struct Arena {
  MoeShape shape;
  std::shared_ptr<const WeightPool<W>> pool;
  Index threads = 1;

  Index num_layers() const { return pool->units() / total_units(shape); }
};

inline double layer_bytes(const MoeShape& shape, double bytes_a_weight) {
  return double(count_gated_ffn_params(shape.d_model, total_units(shape))) * bytes_a_weight;
}

/// Enough layers that no cache holds them: half a gigabyte, or twice the last cache.
inline Index layers_beyond_cache(const MoeShape& shape, double bytes_a_weight) {
  const double wanted = std::max(512e6, 2 * last_cache_bytes());
  return static_cast<Index>(std::ceil(wanted / layer_bytes(shape, bytes_a_weight)));
}

/// What an arena, its tokens and all contenders take together, at most. The dense FFN of equal total size has the
/// largest hidden layer; the sparse layer keeps top_k copies of x and of its hidden layer; an expert is there in float
/// and coded while it is compared.
inline double bytes_of_arena(const MoeShape& shape, Index layers, double bytes_a_weight, Index max_tokens) {
  const double a_token =
      double(total_units(shape)) + double(shape.top_k * (shape.d_model + 3 * shape.d_ff)) + 8.0 * double(shape.d_model);
  const double compared = double(count_gated_ffn_params(shape.d_model, shape.d_ff + shape.d_ff_shared));
  return double(layers) * layer_bytes(shape, bytes_a_weight) + sizeof(float) * a_token * double(max_tokens + 64) +
         (bytes_a_weight < sizeof(float) ? compared * (sizeof(float) + bytes_a_weight) : 0);
}

template <class W, class Progress>
Arena<W> make_arena(const MoeShape& shape, Index layers, Index threads, const Progress& progress) {
  const OpenMp executor(threads);
  return {shape, make_weight_pool<W>(shape.d_model, layers * total_units(shape), executor, progress), threads};
}

/// The model's own router; where that is not a top-k of independent scores, OLMoE's, which costs the same.
inline TopKOptions top_k_options(const MoeShape& shape) {
  const auto* const own = std::get_if<TopKOptions>(&shape.router);
  return own ? *own : TopKOptions{.top_k = shape.top_k};
}

/// The router of layer `l`.
inline LinearTopK<float> router_of(const MoeShape& shape, Index l) {
  using Vector = LinearTopK<float>::Vector;
  const auto seed = static_cast<std::uint32_t>(l * shape.num_experts * shape.d_model);
  const auto bias = [&](bool has) { return has ? Vector(Vector::Zero(shape.num_experts)) : Vector(); };
  return {random_weight(shape.num_experts, shape.d_model, seed), top_k_options(shape), bias(shape.router_bias),
          bias(shape.selection_bias)};
}

template <class W>
GatedFfnBank<W> experts_of(const Arena<W>& arena, Index l) {
  return experts_in(arena.pool, l * total_units(arena.shape), arena.shape.d_ff, arena.shape.num_experts);
}

/// Its hidden units follow those of the other experts.
template <class W>
GatedFfnBank<W> shared_expert_of(const Arena<W>& arena, Index l) {
  const MoeShape& shape = arena.shape;
  return experts_in(arena.pool, l * total_units(shape) + shape.num_experts * shape.d_ff, shape.d_ff_shared, 1);
}

inline Eigen::RowVectorXf shared_gate_of(const MoeShape& shape) {
  return shape.shared_gate ? Eigen::RowVectorXf(random_weight(1, shape.d_model, 0)) : Eigen::RowVectorXf();
}

/// As many of this width as the pool holds.
template <class W>
std::vector<DenseLayer<GatedFfnBank<W>>> dense_layers(const Arena<W>& arena, Index d_ff) {
  std::vector<DenseLayer<GatedFfnBank<W>>> layers;
  for (Index unit = 0; unit + d_ff <= arena.pool->units(); unit += d_ff) {
    layers.emplace_back(experts_in(arena.pool, unit, d_ff, 1));
  }
  return layers;
}

/// A supply of tokens for calls that should not see the same ones again soon.
class Tokens {
 public:
  /// @param supply  whoever draws from another one gets others
  Tokens(Index d_model, Index max_tokens, Index supply = 0)
      : tokens_(random_tokens(d_model, max_tokens + 1024, supply * (max_tokens + 1024))) {}

  /// The next `count` of them.
  auto next(Index count) {
    if (begin_ + count > tokens_.cols()) begin_ = 0;
    begin_ += count;
    return tokens_.middleCols(begin_ - count, count);
  }

 private:
  Matrix<float> tokens_;
  Index begin_ = 0;
};

}  // namespace moe::bench
