/// @file  The tokens of one expert on their way through it.
#pragma once

#include <algorithm>

#include "moe/dispatch.hpp"
#include "moe/kernels/columns.hpp"
#include "moe/kernels/lanes.hpp"
#include "moe/scratch.hpp"
#include "moe/types.hpp"
#include "moe/workers.hpp"

namespace moe::kernels {

/// What an expert reads (x), what it makes of it (hidden), and where its answers are added (y).
template <class S>
struct TokenBatch {
  Index expert;
  Columns<S> x;              // depth d_model
  Columns<S> hidden;         // depth d_ff, in the same form as x
  S* hidden_data = nullptr;  // where `hidden` lies
  Index hidden_stride = 0;   // between its columns, when in place
  WeightOn weight_on = WeightOn::output;
  const S* weight = nullptr;  // of each token
  S* const* y = nullptr;      // a column of d_model numbers for each token

  Index count() const { return x.count; }
};

/// A batch whose x is in place; `hidden` is given memory, in place or packed.
template <class S>
TokenBatch<S> make_batch(Index expert, const Columns<S>& x, Index d_ff, bool packed, Scratch& scratch) {
  TokenBatch<S> batch{.expert = expert, .x = x, .hidden = {d_ff, x.count, nullptr, nullptr}};
  if (packed) {
    batch.hidden.packed = batch.hidden_data = scratch.array<S>(d_ff * padded<S>(x.count));
    return batch;
  }
  batch.hidden_stride = padded<S>(d_ff) + lanes<S>;  // whole registers, and no multiple of 4 KB
  batch.hidden_data = scratch.array<S>(batch.hidden_stride * x.count);
  auto** column = scratch.array<const S*>(x.count);
  for (Index c = 0; c < x.count; ++c) column[c] = batch.hidden_data + c * batch.hidden_stride;
  batch.hidden.in_place = column;
  return batch;
}

/// All columns of x as one batch, on the calling thread: what a dense FFN works on.
template <class S>
TokenBatch<S> batch_of_all(const ConstMatrixRef<S>& x, MatrixRef<S> y, Index d_ff, Scratch& scratch) {
  const auto columns = columns_of<S>(x, scratch);
  TokenBatch<S> batch = make_batch(0, columns, d_ff, columns.count >= packing_pays, scratch);
  batch.x = packed_where_it_pays(columns, scratch, run_in_order);
  auto** out = scratch.array<S*>(x.cols());
  for (Index t = 0; t < x.cols(); ++t) out[t] = y.data() + t * y.outerStride();
  batch.y = out;
  auto* weight = scratch.array<S>(x.cols());
  std::fill_n(weight, x.cols(), S(1));
  batch.weight = weight;
  return batch;
}

/// A batch for each expert that has tokens, in the order of the experts.
template <class S>
class TokenBatches {
 public:
  TokenBatches(const ConstMatrixRef<S>& x, const DispatchPlan<S>& plan, MatrixRef<S> y, Index d_ff, Workers& workers)
      : scratch_(workers.shared()) {
    scratch_.reserve(bytes(plan, x.rows(), d_ff));
    batches_ = scratch_.array<TokenBatch<S>>(plan.num_experts());
    auto** in = scratch_.array<const S*>(plan.num_slots());
    auto** out = scratch_.array<S*>(plan.num_slots());
    for (Index s = 0; s < plan.num_slots(); ++s) {
      in[s] = x.data() + plan.token[std::size_t(s)] * x.outerStride();
      out[s] = y.data() + plan.token[std::size_t(s)] * y.outerStride();
    }
    for (Index e = 0; e < plan.num_experts(); ++e) {
      const Index first = plan.first(e), count = plan.count(e);
      if (count == 0) continue;
      const Columns<S> columns{x.rows(), count, in + first, nullptr};
      TokenBatch<S>& batch = batches_[size_++] = make_batch(e, columns, d_ff, count >= packing_pays, scratch_);
      batch.weight_on = plan.weight_on;
      batch.weight = plan.weight.data() + first;
      batch.y = out + first;
    }
    pack(workers);
  }

  const TokenBatch<S>* begin() const { return batches_; }
  const TokenBatch<S>* end() const { return batches_ + size_; }

 private:
  struct Block {
    const TokenBatch<S>* batch;
    Index first;
    S* packed;
  };

  /// Packs the tokens of the larger batches, one task a block, so that a crowd at one expert is shared too.
  void pack(Workers& workers) {
    Index num_blocks = 0;
    for (const auto& batch : *this) num_blocks += (batch.count() + full_block<S> - 1) / full_block<S>;
    Block* blocks = scratch_.array<Block>(num_blocks);
    num_blocks = 0;
    for (auto* batch = batches_; batch != batches_ + size_; ++batch) {
      if (!batch->hidden.packed) continue;
      S* packed = scratch_.array<S>(batch->x.depth * padded<S>(batch->count()));
      batch->x.packed = packed;
      for (Index first = 0; first < batch->count(); first += full_block<S>) {
        blocks[num_blocks++] = {batch, first, packed + first * batch->x.depth};
      }
    }
    workers.for_each(num_blocks,
                     [&](Index b, Scratch&) { pack_block(blocks[b].batch->x, blocks[b].first, blocks[b].packed); });
  }

  /// Enough for any plan of as many slots or fewer, whichever experts they go to; so a smaller batch never needs more.
  static std::size_t bytes(const DispatchPlan<S>& plan, Index d_model, Index d_ff) {
    const Index slots = plan.num_slots(), experts = std::min(plan.num_experts(), slots);
    const Index columns = slots + experts * lanes<S>;  // with a register's worth of padding each
    const Index numbers = columns * (padded<S>(d_ff) + lanes<S>)+(slots >= packing_pays ? columns * d_model : 0);
    return std::size_t(numbers) * sizeof(S) + std::size_t(slots) * (4 * sizeof(void*) + sizeof(Block)) +
           std::size_t(plan.num_experts()) * sizeof(TokenBatch<S>) + std::size_t(4 * experts + 8) * Scratch::alignment;
  }

  Scratch& scratch_;
  TokenBatch<S>* batches_;
  Index size_ = 0;
};

}  // namespace moe::kernels
