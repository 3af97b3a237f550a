/// @file  How far a layer's answers are from those of the float layer of the same weights.
#pragma once

#include <optional>
#include <type_traits>
#include <vector>

#include "arena.hpp"
#include "moe/core/numerics.hpp"
#include "moe/core/quantized.hpp"
#include "moe/core/types.hpp"
#include "moe/core/weight_stack.hpp"
#include "moe/experts/gated_ffn_bank.hpp"
#include "moe/layers/moe_layer.hpp"
#include "moe/layers/shared.hpp"
#include "moe/models/presets.hpp"
#include "moe/runtime/executors/openmp.hpp"
#include "moe/runtime/workspace.hpp"
#include "weight_pool.hpp"

namespace moe::bench {

namespace detail {

/// A stack of one, as a stack of `count`.
template <class W>
WeightStack<W> repeated(const WeightStack<W>& one, Index count) {
  if constexpr (std::is_same_v<W, Quantized>) {
    return WeightStack<W>(std::vector(std::size_t(count), one[0]));
  } else {
    return {std::vector<const W*>(std::size_t(count), one[0].data()), one.rows(), one.cols(), one.row_stride()};
  }
}

/// What a layer of this shape answers whose experts are all the same.
template <class W>
Matrix<float> answers_of(const MoeShape& shape, const GatedFfnBank<W>& expert,
                         const std::optional<GatedFfnBank<W>>& shared, const Matrix<float>& x, Index threads,
                         const Numerics& numerics = {}) {
  const MoeLayer layer(router_of(shape, 0), GatedFfnBank<W>(repeated(expert.w_gate(), shape.num_experts),
                                                            repeated(expert.w_up(), shape.num_experts),
                                                            repeated(expert.w_down(), shape.num_experts)));
  Matrix<float> y(x.rows(), x.cols());
  Workspace<float> ws;
  ws.numerics = numerics;
  const OpenMp executor(threads);
  if (shared) {
    WithSharedExpert(layer, *shared, shared_gate_of(shape)).forward(x, y, ws, executor);
  } else {
    layer.forward(x, y, ws, executor);
  }
  return y;
}

}  // namespace detail

/// ‖y − y of float weights‖ / ‖y of float weights‖ of some tokens. Of experts the first stands for all: neither their
/// errors nor their answers have anything to do with each other, so both add up alike.
template <class W>
double answer_error(const Arena<W>& arena, const Numerics& numerics = {}) {
  if (std::is_same_v<W, float>) return 0;  // of which fast products are exact ones
  const MoeShape& shape = arena.shape;
  const Matrix<float> x = random_tokens(shape.d_model, 16);
  const auto floats = [&](Index first_unit, Index d_ff) {
    const OpenMp executor(arena.threads);
    return experts_in(make_weight_pool<float>(shape.d_model, d_ff, executor, [](double) {}, first_unit), 0, d_ff, 1);
  };
  std::optional<GatedFfnBank<W>> shared;
  std::optional<GatedFfnBank<float>> float_shared;
  if (shape.d_ff_shared > 0) {
    shared = shared_expert_of(arena, 0);
    float_shared = floats(shape.num_experts * shape.d_ff, shape.d_ff_shared);
  }
  const GatedFfnBank<W> expert = experts_in(arena.pool, 0, shape.d_ff, 1);
  const Matrix<float> y = detail::answers_of(shape, expert, shared, x, arena.threads, numerics);
  const Matrix<float> exact = detail::answers_of(shape, floats(0, shape.d_ff), float_shared, x, arena.threads);
  return double((y - exact).norm()) / double(exact.norm());
}

}  // namespace moe::bench
