/// @file  Random weights that every layer of a benchmark is a view of.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "moe/core/task.hpp"
#include "moe/core/types.hpp"
#include "moe/core/weight_stack.hpp"
#include "moe/experts/gated_ffn_bank.hpp"
#include "moe/runtime/workers.hpp"

namespace moe::bench {

/// Uniform in [−1, 1), from a counter: any order, any thread.
inline float random_number(std::uint32_t i) {
  i = (i + 1) * 0x9e3779b9U;  // the finaliser of MurmurHash3
  i = (i ^ (i >> 16)) * 0x85ebca6bU;
  i = (i ^ (i >> 13)) * 0xc2b2ae35U;
  return static_cast<float>(static_cast<std::int32_t>(i ^ (i >> 16))) * 0x1p-31F;
}

/// Columns of unit variance: [first, first + count) of all that there are.
inline Matrix<float> random_tokens(Index d_model, Index count, Index first = 0) {
  return Matrix<float>::NullaryExpr(d_model, count, [&](Index row, Index column) {
    return 1.73F * random_number(std::uint32_t((first + column) * d_model + row));
  });
}

/// (outputs × inputs); outputs of unit variance for inputs of unit variance.
inline Weight<float> random_weight(Index outputs, Index inputs, std::uint32_t seed) {
  const float scale = std::sqrt(3.0F / static_cast<float>(inputs));
  return Weight<float>::NullaryExpr(outputs, inputs, [&](Index row, Index column) {
    return scale * random_number(seed + std::uint32_t(row * inputs + column));
  });
}

/// Hidden units of gated FFNs: a row of w_gate, a row of w_up, a column of w_down each. An expert is d_ff units, a
/// dense FFN top_k · d_ff or num_experts · d_ff of them; so sparse and dense read the same bytes, which memory holds
/// once.
template <class W>
struct WeightPool {
  WeightStack<W> gate, up, down;  // a stack of one

  Index d_model() const { return gate.cols(); }
  Index units() const { return gate.rows(); }
  double bytes_a_weight() const { return sizeof(W); }
};

/// `count` experts of width d_ff, side by side from `first_unit` on.
template <class W>
GatedFfnBank<W> experts_in(const std::shared_ptr<const WeightPool<W>>& pool, Index first_unit, Index d_ff,
                           Index count) {
  const Index d_model = pool->d_model();
  const auto at = [&](const WeightStack<W>& stack) {
    std::vector<const W*> experts;
    for (Index e = 0; e < count; ++e) experts.push_back(stack[0].data() + (first_unit + e * d_ff) * d_model);
    return experts;
  };
  return {WeightStack<W>(at(pool->gate), d_ff, d_model, d_model, pool),
          WeightStack<W>(at(pool->up), d_ff, d_model, d_model, pool),
          WeightStack<W>(at(pool->down), d_model, d_ff, d_ff, pool)};
}

/// Fills [to, to + size) with copies of `block`: other numbers in other memory would take no other time.
template <class W>
void fill_with(const Weight<W>& block, W* to, Index size, ExecutorRef executor) {
  const Index blocks = (size + block.size() - 1) / block.size();
  executor.for_each(blocks, Task([&](Index b, Index) {
                      const Index first = b * block.size();
                      std::copy_n(block.data(), std::min(block.size(), size - first), to + first);
                    }));
}

/// @param progress    called as progress(share that is filled)
/// @param first_unit  whose numbers are those that a pool from 0 on has there
template <class W, class Progress>
std::shared_ptr<const WeightPool<W>> make_weight_pool(Index d_model, Index units, ExecutorRef executor,
                                                      const Progress& progress, Index first_unit = 0) {
  constexpr Index block_size = 1'000'003;  // a prime, so that no two rows are alike
  const float scale = std::sqrt(3.0F / static_cast<float>(d_model));
  const Weight<W> block = Weight<W>::NullaryExpr(1, block_size, [&](Index, Index i) {
    return W(scale * random_number(std::uint32_t((first_unit * d_model + i) % block_size)));
  });
  const auto filled = [&](Index rows, Index cols, double share) {
    WeightStack<W> stack(1, rows, cols);
    fill_with(block, stack.owned(0).data(), rows * cols, executor);
    progress(share);
    return stack;
  };
  auto gate = filled(units, d_model, 1.0 / 3), up = filled(units, d_model, 2.0 / 3), down = filled(d_model, units, 1);
  return std::make_shared<const WeightPool<W>>(WeightPool<W>{std::move(gate), std::move(up), std::move(down)});
}

}  // namespace moe::bench
