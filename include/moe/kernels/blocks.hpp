/// @file  Activations as many tokens are read: in blocks, which hold some of them side by side.
#pragma once

#include <algorithm>

#include "moe/core/scratch.hpp"
#include "moe/core/types.hpp"
#include "moe/kernels/arithmetic.hpp"
#include "moe/kernels/columns.hpp"
#include "moe/kernels/lanes.hpp"
#include "moe/kernels/transpose.hpp"

namespace moe::inline MOE_TARGET::kernels {

/// Columns of a full block: two registers of units.
template <class A>
inline constexpr Index full_block = 2 * A::L;

/// Width of the block that starts where `columns_left` are left: two registers, or one where that is enough.
template <class A>
constexpr Index block_width(Index columns_left) {
  return columns_left > A::L ? full_block<A> : A::L;
}

/// `count` columns (tokens) of `depth` numbers each, in blocks for an arithmetic A: full_block<A> columns, or half as
/// many at the end, make a block [A::num_units(depth)][width] of units, so that a row of it is one or two registers;
/// what is missing in the last block is 0.
template <class A>
struct Blocks {
  using Register = typename A::Register;
  using Unit = typename A::Unit;

  Index depth, count;
  Register* registers = nullptr;

  /// Registers of all.
  Index size() const { return A::num_units(depth) * round_up(count, A::L) / A::L; }

  /// That of column `first`, which begins it.
  Unit* block(Index first) const { return reinterpret_cast<Unit*>(registers) + first * A::num_units(depth); }
};

/// Of an A that has a Block of its own, for a step of A::L columns: block b is steps() of them. The last one is as many
/// of A::HalfBlock, if half of the columns have room there.
template <HasBlock A>
struct Blocks<A> {
  using Register = typename A::Register;

  Index depth, count;
  Register* registers = nullptr;

  Index steps() const { return steps_of<A>(depth); }
  Index size() const {
    const Index last = count % A::L, whole = count / A::L + (last > A::L / 2);
    const Index half = last > 0 && last <= A::L / 2;
    return steps() *
           Index((std::size_t(whole) * sizeof(typename A::Block) + std::size_t(half) * sizeof(typename A::HalfBlock)) /
                 sizeof(Register));
  }

  /// Whether block b is half of one.
  bool is_half(Index b) const { return count - b * A::L <= A::L / 2; }

  typename A::Block* block(Index b) const { return reinterpret_cast<typename A::Block*>(registers) + b * steps(); }
  typename A::HalfBlock* half_block(Index b) const { return reinterpret_cast<typename A::HalfBlock*>(block(b)); }
};

/// Whether X is blocks of units.
template <class X>
inline constexpr bool are_units = false;
template <HasUnits A>
inline constexpr bool are_units<Blocks<A>> = true;

/// Blocks that the caller fills in.
template <class A>
Blocks<A> make_blocks(Index depth, Index count, Scratch& scratch) {
  Blocks<A> blocks{depth, count};
  blocks.registers = scratch.array<typename A::Register>(blocks.size());
  return blocks;
}

namespace detail {

/// The same, as registers.
template <class A>
MOE_INLINE void arrange_step(const typename A::Scalar* x, Index k, Index depth, typename A::Scalar factor,
                             typename A::Register* to) {
  typename A::Scalar numbers[A::step];
  scaled_step<A>(x, k, depth, factor, numbers);
  A::arrange(numbers, to);
}

}  // namespace detail

/// Writes the block of `to` that starts at column `first`: factor[i] · x[i][0, to.depth) for each of its columns.
template <class A>
MOE_KERNEL void put_block(const typename A::Scalar* const* x, const typename A::Scalar* factor, const Blocks<A>& to,
                          Index first) {
  using S = typename A::Scalar;
  constexpr int L = A::L;
  const Index width = block_width<A>(to.count - first), units = A::num_units(to.depth);
  auto* const block = to.block(first);
  for (Index c = 0; c < width; c += L) {
    const Index filled = std::clamp<Index>(to.count - first - c, 0, L);
    for (Index k = 0, unit = 0; k < to.depth; k += A::step, unit += A::parts * L) {
      Lanes<S> square[A::parts][L] = {};
      for (Index i = 0; i < filled; ++i) {
        typename A::Register parts[A::parts];
        detail::arrange_step<A>(x[c + i], k, to.depth, factor ? factor[c + i] : S(1), parts);
        for (int p = 0; p < A::parts; ++p) square[p][i] = (Lanes<S>)parts[p];
      }
      for (int p = 0; p < A::parts; ++p) {
        transpose<S>(square[p]);
        const Index rows = std::min<Index>(L, units - unit - p * L);
        for (Index u = 0; u < rows; ++u) store(block + (unit + p * L + u) * width + c, square[p][u]);
      }
    }
  }
}

/// Writes columns [first, first + count) of `to`, where a block begins: factor[i] · x[i][0, to.depth). No factors are
/// all 1.
template <class A>
void put_some(const typename A::Scalar* const* x, const typename A::Scalar* factor, const Blocks<A>& to, Index first,
              [[maybe_unused]] Index count) {
  put_block<A>(x, factor, to, first);
}

/// Writes step `step` of columns [first, first + count), at most A::L from one that begins a block on: numbers at
/// x[i].
template <HasBlock A>
MOE_INLINE void put_step_of(const typename A::Scalar* const* x, Index count, const Blocks<A>& to, Index first,
                            Index step) {
  const Index b = first / A::L;
  if (to.is_half(b)) return A::arrange_in_block(x, count, to.half_block(b)[step]);
  A::arrange_in_block(x, count, to.block(b)[step]);
}

/// The same of blocks of steps: step by step, for a block is larger than L1.
template <HasBlock A>
MOE_KERNEL void put_some(const typename A::Scalar* const* x, const typename A::Scalar* factor, const Blocks<A>& to,
                         Index first, Index count) {
  using S = typename A::Scalar;
  for (Index done = 0; done < count; done += A::L) {
    const Index columns = std::min<Index>(A::L, count - done);
    for (Index step = 0; step < to.steps(); ++step) {
      const Index k = step * A::step;
      const bool is_whole = factor == nullptr && k + A::step <= to.depth;
      S numbers[A::L][A::step];
      const S* from[A::L];
      for (Index i = 0; i < columns; ++i) {
        const S* const its = x[done + i];
        from[i] = is_whole ? its + k : numbers[i];
        if (!is_whole) detail::scaled_step<A>(its, k, to.depth, factor ? factor[done + i] : S(1), numbers[i]);
      }
      put_step_of<A>(from, columns, to, first + done, step);
    }
  }
}

/// Writes steps of columns [first, first + count), as above, from step `step` on: numbers at x + i · stride, whole
/// steps.
template <HasBlock A>
MOE_INLINE void put_made(const typename A::Scalar* x, Index stride, Index steps, Index count, const Blocks<A>& to,
                         Index first, Index step) {
  const typename A::Scalar* from[A::L];
  for (Index s = 0; s < steps; ++s) {
    for (Index i = 0; i < count; ++i) from[i] = x + i * stride + s * A::step;
    put_step_of<A>(from, count, to, first, step + s);
  }
}

}  // namespace moe::inline MOE_TARGET::kernels
