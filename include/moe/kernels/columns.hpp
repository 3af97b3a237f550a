/// @file  Activations as few tokens are read: a column after the other.
#pragma once

#include <algorithm>

#include "moe/core/scratch.hpp"
#include "moe/core/types.hpp"
#include "moe/kernels/arithmetic.hpp"
#include "moe/kernels/lanes.hpp"
#include "moe/kernels/load_padded.hpp"

namespace moe::inline MOE_TARGET::kernels {

/// `size` rounded up to a multiple of `whole`.
constexpr Index round_up(Index size, Index whole) { return (size + whole - 1) / whole * whole; }

/// Steps of an arithmetic A that hold so many numbers.
template <class A>
constexpr Index steps_of(Index depth) {
  return (depth + A::step - 1) / A::step;
}

/// `count` columns (tokens) of `depth` numbers each, arranged for an arithmetic A: column c is steps() · A::parts
/// registers from `registers + c · stride` on, 0 beyond the depth.
template <class A>
struct Columns {
  using Register = typename A::Register;

  Index depth, count;
  Register* registers = nullptr;

  Index steps() const { return steps_of<A>(depth); }

  /// Registers between columns: whole cache lines, never a multiple of 4 KB, where tokens would collide in L1.
  Index stride() const {
    constexpr Index line = std::max<Index>(1, 64 / Index(sizeof(Register)));
    return round_up(steps() * A::parts, line) + line;
  }

  /// Registers of all.
  Index size() const { return stride() * count; }

  const Register* column(Index c) const { return registers + c * stride(); }

  /// Some of them.
  Columns from(Index first, Index num) const { return {depth, num, registers + first * stride()}; }
};

/// Columns that the caller fills in.
template <class A>
Columns<A> make_columns(Index depth, Index count, Scratch& scratch) {
  Columns<A> columns{depth, count};
  columns.registers = scratch.array<typename A::Register>(columns.size());
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

}  // namespace detail

/// Writes the step of column c that begins at number k.
template <class A>
MOE_INLINE void put_step(const typename A::Scalar* numbers, const Columns<A>& to, Index c, Index k) {
  A::arrange(numbers, to.registers + c * to.stride() + k / A::step * A::parts);
}

/// Writes column c of `to`: factor · x[0, to.depth).
template <class A>
MOE_KERNEL void put_column(const typename A::Scalar* x, typename A::Scalar factor, const Columns<A>& to, Index c) {
  using S = typename A::Scalar;
  Index k = 0;
  for (; factor == 1 && k + A::step <= to.depth; k += A::step) put_step<A>(x + k, to, c, k);
  for (; k < to.depth; k += A::step) {
    S numbers[A::step];
    detail::scaled_step<A>(x, k, to.depth, factor, numbers);
    put_step<A>(numbers, to, c, k);
  }
}

/// Writes steps of columns [first, first + count), from step `step` on: numbers at x + i · stride, whole steps.
template <class A>
MOE_INLINE void put_made(const typename A::Scalar* x, Index stride, Index steps, Index count, const Columns<A>& to,
                         Index first, Index step) {
  for (Index i = 0; i < count; ++i) {
    for (Index s = 0; s < steps; ++s) {
      put_step<A>(x + i * stride + s * A::step, to, first + i, (step + s) * A::step);
    }
  }
}

/// Writes columns [first, first + count) of `to`: factor[i] · x[i][0, to.depth). No factors are all 1.
template <class A>
void put_some(const typename A::Scalar* const* x, const typename A::Scalar* factor, const Columns<A>& to, Index first,
              Index count) {
  for (Index i = 0; i < count; ++i) put_column<A>(x[i], factor ? factor[i] : 1, to, first + i);
}

}  // namespace moe::inline MOE_TARGET::kernels
