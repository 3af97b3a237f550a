/// @file  The tokens of one expert on their way through it.
#pragma once

#include <algorithm>
#include <new>

#include "moe/core/dispatch.hpp"
#include "moe/core/scratch.hpp"
#include "moe/core/types.hpp"
#include "moe/kernels/activations.hpp"
#include "moe/kernels/low_rank.hpp"
#include "moe/kernels/products.hpp"
#include "moe/runtime/workers.hpp"

namespace moe::inline MOE_TARGET::kernels {

/// Where the numbers are kept that an activation reads (up, and gate if it takes two), and those that it makes of them,
/// a token's side by side, for whoever asks for them; null for nowhere.
template <class Scalar>
struct Kept {
  Scalar* gate = nullptr;
  Scalar* up = nullptr;
  Index stride = 0;  // between tokens
  Scalar* hidden = nullptr;

  Kept from(Index slot) const {
    const auto at = [&](Scalar* first) { return first ? first + slot * stride : nullptr; };
    return {at(gate), at(up), stride, at(hidden)};
  }
};

/// Numbers between tokens: whole registers and cache lines, one line more than needed, or tokens that are 4 KB long
/// would collide in L1.
constexpr Index kept_stride(Index rows) { return round_up(rows, 16) + 16; }

/// What an expert reads (x), what it makes of it (hidden), and where its answers are added (y).
template <Arithmetic A>
struct TokenBatch {
  using Scalar = typename A::Scalar;

  Index expert;
  Index first;                     // of the expert's tokens
  Activations<A> x;                // depth d_model; the weight is multiplied in where it belongs on the input
  Activations<A> hidden;           // depth d_ff, in the same form as x
  const Scalar* weight = nullptr;  // of each token's answer; null where all are 1
  Scalar* const* y = nullptr;      // a column of d_model numbers for each token
  Kept<Scalar> kept{};             // d_ff numbers of each for each token
  LowRanks<Scalar> low_ranks{};    // what is added to its products

  Index count() const { return x.count(); }
};

/// Columns of x as one batch, exactly, on the calling thread.
template <class W, class S>
TokenBatch<Exact<W>> batch_of(const ConstMatrixRef<S>& x, MatrixRef<S> y, bool in_blocks, Index d_ff,
                              Scratch& scratch) {
  using A = Exact<W>;
  TokenBatch<A> batch{.expert = 0,
                      .first = 0,
                      .x = activations_of<A>(x, in_blocks, scratch, run_in_order),
                      .hidden = make_activations<A>(d_ff, x.cols(), in_blocks, scratch)};
  auto** out = scratch.array<S*>(x.cols());
  for (Index t = 0; t < x.cols(); ++t) out[t] = y.data() + t * y.outerStride();
  batch.y = out;
  return batch;
}

/// Bytes that it takes for so many tokens, in either form: never more for fewer.
template <Arithmetic A>
std::size_t batch_bytes(Index d_model, Index d_ff, Index tokens) {
  return activation_bytes<A>(d_model, tokens) + activation_bytes<A>(d_ff, tokens) +
         std::size_t(tokens) * sizeof(void*) + 2 * Scratch::alignment;
}

/// Rows of weights that one batch of an expert meets before the next one does: they stay in L2.
template <class A>
inline constexpr Index rows_of_batches = round_up(32, A::step);

/// A batch, or two, for each expert that has tokens, in the order of the experts.
template <Arithmetic A>
class TokenBatches {
 public:
  using Scalar = typename A::Scalar;

  TokenBatches(const ConstMatrixRef<Scalar>& x, const DispatchPlan<Scalar>& plan, MatrixRef<Scalar> y, Index d_ff,
               Workers& workers, const Kept<Scalar>& kept = {})
      : scratch_(workers.shared()) {
    scratch_.reserve(bytes(plan, x.rows(), d_ff));
    batches_ = scratch_.array<TokenBatch<A>>(2 * plan.num_experts());
    auto** in = scratch_.array<const Scalar*>(plan.num_slots());
    auto** out = scratch_.array<Scalar*>(plan.num_slots());
    for (Index s = 0; s < plan.num_slots(); ++s) {
      in[s] = x.data() + plan.token[std::size_t(s)] * x.outerStride();
      out[s] = y.data() + plan.token[std::size_t(s)] * y.outerStride();
    }
    for (Index e = 0; e < plan.num_experts(); ++e) {
      const Index first = plan.first(e), count = plan.count(e);
      for_each_form<A>(count, workers.numerics(), [&](Index begin, Index end, bool blocks) {
        const Index slot = first + begin;
        new (batches_ + size_++)
            TokenBatch<A>{.expert = e,
                          .first = begin,
                          .x = make_activations<A>(x.rows(), end - begin, blocks, scratch_),
                          .hidden = make_activations<A>(d_ff, end - begin, blocks, scratch_),
                          .weight = plan.weight_on == WeightOn::output ? plan.weight.data() + slot : nullptr,
                          .y = out + slot,
                          .kept = kept.from(slot)};
      });
    }
    put(in, plan, workers);
  }

  const TokenBatch<A>* begin() const { return batches_; }
  const TokenBatch<A>* end() const { return batches_ + size_; }
  TokenBatch<A>* begin() { return batches_; }
  TokenBatch<A>* end() { return batches_ + size_; }

  /// f(batch, first, last) for rows [first, last) of each expert's weights and each of its batches: some rows after the
  /// other, so that its second batch finds them in the cache.
  template <class F>
  void for_each(Index first, Index last, const F& f) const {
    for (const auto* batch = begin(); batch != end(); ++batch) {
      const auto* const next = batch + 1;
      if (next == end() || next->expert != batch->expert) {
        f(*batch, first, last);
        continue;
      }
      for (Index top = first; top < last; top += rows_of_batches<A>) {
        for (const auto* of : {batch, next}) f(*of, top, std::min(last, top + rows_of_batches<A>));
      }
      batch = next;
    }
  }

 private:
  struct Part {
    const TokenBatch<A>* batch;
    Index first;
  };

  /// Fills in x, one task for some columns, so that a crowd at one expert is shared too.
  void put(const Scalar* const* in, const DispatchPlan<Scalar>& plan, Workers& workers) {
    const auto put_part = [&](const TokenBatch<A>& batch, Index first) {
      const Index slot = plan.first(batch.expert) + batch.first + first;
      const Scalar* factor = plan.weight_on == WeightOn::input ? plan.weight.data() + slot : nullptr;
      put_some<A>(in + slot, factor, batch.x, first);
    };
    const auto for_each_part = [&](const auto& use) {
      for (const auto& batch : *this) {
        for (Index first = 0; first < batch.count(); first += some<A>) use(batch, first);
      }
    };
    // Waking the other workers takes as long as copying a few thousand numbers.
    if (workers.count() == 1 || plan.num_slots() * batches_->x.depth() < 1 << 15) return for_each_part(put_part);
    Index num_parts = 0;
    for_each_part([&](const auto&, Index) { ++num_parts; });
    Part* const parts = scratch_.array<Part>(num_parts);
    num_parts = 0;
    for_each_part([&](const auto& batch, Index first) { parts[num_parts++] = {&batch, first}; });
    workers.for_each(num_parts, [&](Index p, Scratch&) { put_part(*parts[p].batch, parts[p].first); });
  }

  /// Enough for any plan of as many slots or fewer, whichever experts they go to; so a smaller batch never needs more.
  static std::size_t bytes(const DispatchPlan<Scalar>& plan, Index d_model, Index d_ff) {
    const Index slots = plan.num_slots(), experts = std::min(plan.num_experts(), slots);
    const auto registers = [&](Index depth) {
      // The last block of an expert may be half empty.
      return Columns<A>{depth, slots}.size() + A::num_units(depth) * std::min(experts, slots / A::blocks_pay);
    };
    return std::size_t(registers(d_model) + registers(d_ff)) * sizeof(typename A::Register) +
           std::size_t(slots) * (2 * sizeof(void*) + sizeof(Part)) +
           std::size_t(2 * plan.num_experts()) * sizeof(TokenBatch<A>) +
           std::size_t(4 * experts + 8) * Scratch::alignment;
  }

  Scratch& scratch_;
  TokenBatch<A>* batches_;
  Index size_ = 0;
};

}  // namespace moe::inline MOE_TARGET::kernels
