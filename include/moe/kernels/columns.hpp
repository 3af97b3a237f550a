/// @file  Activations as products read them: column by column, or in blocks that hold many tokens side by side.
#pragma once

#include <algorithm>
#include <cstring>

#include "moe/core/scratch.hpp"
#include "moe/core/types.hpp"
#include "moe/kernels/arithmetic.hpp"
#include "moe/kernels/lanes.hpp"
#include "moe/kernels/load_padded.hpp"
#include "moe/kernels/transpose.hpp"

namespace moe::inline MOE_TARGET::kernels {

/// `size` rounded up to a multiple of `whole`.
constexpr Index round_up(Index size, Index whole) { return (size + whole - 1) / whole * whole; }

/// `count` columns (tokens) of `depth` numbers each, arranged for an arithmetic A.
///
/// Column by column: column c is steps() · A::parts registers from `registers + c · stride` on, 0 beyond the depth.
/// In blocks: full_block<A> columns, or half as many at the end, make a block [A::num_units(depth)][width] of units, so
/// that a row of it is one or two registers; what is missing in the last block is 0. (An A without units has blocks of
/// its own, A::Block for each step of A::L columns.)
template <class A>
struct Columns {
  using Register = typename A::Register;
  using Unit = typename A::Unit;

  Index depth, count;
  bool in_blocks;
  Register* registers;

  Index steps() const { return (depth + A::step - 1) / A::step; }

  /// Registers between columns: whole cache lines, never a multiple of 4 KB, where tokens would collide in L1.
  Index stride() const {
    constexpr Index line = std::max<Index>(1, 64 / Index(sizeof(Register)));
    return round_up(steps() * A::parts, line) + line;
  }

  const Register* column(Index c) const { return registers + c * stride(); }
  /// Where blocks are not of units: the step of block b, which has A::L columns.
  Register* block_step(Index b, Index step) const {
    return registers + (b * steps() + step) * Index(sizeof(typename A::Block) / sizeof(Register));
  }
  Unit* block(Index first) const { return reinterpret_cast<Unit*>(registers) + first * A::num_units(depth); }
};

/// Columns of a full block: two registers of units.
template <class A>
inline constexpr Index full_block = 2 * A::L;

/// Width of the block that starts where `columns_left` are left: two registers, or one where that is enough.
template <class A>
constexpr Index block_width(Index columns_left) {
  return columns_left > A::L ? full_block<A> : A::L;
}

/// Bytes that so many columns of this depth take in either form, at most.
template <class A>
std::size_t columns_bytes(Index depth, Index count) {
  const Index in_turn = Columns<A>{depth, count, false, nullptr}.stride() * count;
  const Index in_blocks = A::num_units(depth) * round_up(count, A::L) / A::L;
  return std::size_t(std::max(in_turn, in_blocks)) * sizeof(typename A::Register) + Scratch::alignment;
}

/// Columns that the caller fills in.
template <class A>
Columns<A> make_columns(Index depth, Index count, bool in_blocks, Scratch& scratch) {
  Columns<A> columns{depth, count, in_blocks, nullptr};
  const bool are_units = in_blocks && HasUnits<A>;
  const Index size = are_units ? A::num_units(depth) * round_up(count, A::L) / A::L : columns.stride() * count;
  columns.registers = scratch.array<typename A::Register>(size);
  return columns;
}

namespace detail {

/// factor · the step of x that starts at number k; numbers beyond the depth are 0.
template <class A>
MOE_INLINE void scaled_step(const typename A::Scalar* x, Index k, Index depth, typename A::Scalar factor,
                            typename A::Scalar* numbers) {
  if (k + A::step <= depth) {
    for (Index i = 0; i < A::step; ++i) numbers[i] = factor * x[k + i];
  } else {
    for (Index p = 0; p < A::step; p += lanes<typename A::Scalar>) {
      store(numbers + p, factor * load_padded<Lanes<typename A::Scalar>>(x + k + p, depth - k - p));
    }
  }
}

/// The same, as registers.
template <class A>
MOE_INLINE void arrange_step(const typename A::Scalar* x, Index k, Index depth, typename A::Scalar factor,
                             typename A::Register* to) {
  typename A::Scalar numbers[A::step];
  scaled_step<A>(x, k, depth, factor, numbers);
  A::arrange(numbers, to);
}

}  // namespace detail

/// Writes the step of column c that begins at number k.
template <class A>
MOE_INLINE void put_step(const typename A::Scalar* numbers, const Columns<A>& to, Index c, Index k) {
  const Index step = k / A::step;
  if constexpr (requires { &A::arrange_in_block; }) {
    if (to.in_blocks) return A::arrange_in_block(numbers, c % A::L, c + 1 == to.count, to.block_step(c / A::L, step));
  }
  A::arrange(numbers, to.registers + c * to.stride() + step * A::parts);
}

/// Writes steps [first, last) of column c of `to`: factor · x[0, to.depth).
template <class A>
MOE_INLINE void put_steps(const typename A::Scalar* x, typename A::Scalar factor, const Columns<A>& to, Index c,
                          Index first, Index last) {
  using S = typename A::Scalar;
  Index k = first * A::step;
  const Index end = last * A::step;
  for (; factor == 1 && k < end && k + A::step <= to.depth; k += A::step) put_step<A>(x + k, to, c, k);
  for (; k < end; k += A::step) {
    S numbers[A::step];
    detail::scaled_step<A>(x, k, to.depth, factor, numbers);
    put_step<A>(numbers, to, c, k);
  }
}

/// Writes column c of `to`: factor · x[0, to.depth).
template <class A>
MOE_KERNEL void put_column(const typename A::Scalar* x, typename A::Scalar factor, const Columns<A>& to, Index c) {
  put_steps<A>(x, factor, to, c, 0, to.steps());
}

/// Writes the block of `to` that starts at column `first`: factor[i] · x[i][0, to.depth) for each of its columns.
template <class A>
MOE_KERNEL void put_block(const typename A::Scalar* const* x, const typename A::Scalar* factor, const Columns<A>& to,
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

/// task(0), task(1), … task(n − 1).
inline constexpr auto run_in_order = [](Index n, const auto& task) {
  for (Index i = 0; i < n; ++i) task(i);
};

/// Columns that put_some() writes at once.
template <class A>
inline constexpr Index some = full_block<A>;

/// Writes `some` columns of `to`, from the multiple of `some` that is `first` on: factor[i] · x[i][0, to.depth). No
/// factors are all 1.
template <class A>
void put_some(const typename A::Scalar* const* x, const typename A::Scalar* factor, const Columns<A>& to, Index first) {
  if constexpr (HasUnits<A>) {
    if (to.in_blocks) return put_block<A>(x, factor, to, first);
  }
  const Index count = std::min(some<A>, to.count - first);
  if constexpr (requires { &A::arrange_in_block; }) {
    if (to.in_blocks) {  // step by step, for a block is larger than L1
      for (Index step = 0; step < to.steps(); ++step) {
        for (Index i = 0; i < count; ++i) put_steps<A>(x[i], factor ? factor[i] : 1, to, first + i, step, step + 1);
      }
      return;
    }
  }
  for (Index i = 0; i < count; ++i) put_column<A>(x[i], factor ? factor[i] : 1, to, first + i);
}

/// All columns of x. Memory comes from `scratch`; for_each(n, task) runs task(i).
template <class A, class ForEach>
Columns<A> columns_of(const ConstMatrixRef<typename A::Scalar>& x, bool in_blocks, Scratch& scratch,
                      const ForEach& for_each) {
  scratch.reserve(columns_bytes<A>(x.rows(), x.cols()));  // in either form: so that fewer columns never need more
  const Columns<A> columns = make_columns<A>(x.rows(), x.cols(), in_blocks, scratch);
  for_each((x.cols() + some<A> - 1) / some<A>, [&](Index task) {
    const typename A::Scalar* from[some<A>];
    const Index first = task * some<A>;
    for (Index i = 0; i < std::min(some<A>, x.cols() - first); ++i) from[i] = x.data() + (first + i) * x.outerStride();
    put_some<A>(from, nullptr, columns, first);
  });
  return columns;
}

}  // namespace moe::inline MOE_TARGET::kernels
