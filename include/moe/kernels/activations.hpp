/// @file  Activations as products read them, in the one form or the other.
#pragma once

#include <algorithm>
#include <cstddef>
#include <variant>

#include "moe/core/numerics.hpp"
#include "moe/core/scratch.hpp"
#include "moe/core/types.hpp"
#include "moe/kernels/arithmetic.hpp"
#include "moe/kernels/blocks.hpp"
#include "moe/kernels/columns.hpp"

namespace moe::inline MOE_TARGET::kernels {

/// Columns, or blocks.
template <class A>
struct Activations : std::variant<Columns<A>, Blocks<A>> {
  using std::variant<Columns<A>, Blocks<A>>::variant;

  const Columns<A>& columns() const { return std::get<Columns<A>>(*this); }
  const Blocks<A>& blocks() const { return std::get<Blocks<A>>(*this); }
  bool in_blocks() const { return std::holds_alternative<Blocks<A>>(*this); }

  /// f(columns) or f(blocks).
  template <class F>
  MOE_INLINE decltype(auto) visit(const F& f) const {
    if constexpr (A::blocks_pay != never) {
      if (in_blocks()) return f(blocks());
    }
    return f(columns());
  }

  Index depth() const {
    return visit([](const auto& x) { return x.depth; });
  }
  Index count() const {
    return visit([](const auto& x) { return x.count; });
  }
};

/// How many of so many columns are better turned into blocks: the first ones, if any. Sums of the others have another
/// order. A last block of which many columns would be missing is left to those.
template <class A>
constexpr Index columns_in_blocks(Index columns, const Numerics& numerics) {
  if (columns < A::blocks_pay || numerics.batch_invariant) return 0;
  if constexpr (requires { A::column_alone; }) {
    constexpr double half_block = 1.35 * A::L, whole_block = 2 * A::L;  // a half one has one load for each product
    const Index last = columns % A::L, whole = columns - last;
    const bool ends_in_half = whole % full_block<A> != 0;
    const double in_whole = double(whole) + (ends_in_half ? half_block - A::L : 0);
    const double in_last = last == 0 ? 0 : ends_in_half ? whole_block - half_block : half_block;
    const double alone = A::column_alone * double(last);
    if (in_whole + std::min(in_last, alone) > A::column_alone * double(columns)) return 0;
    return alone < in_last ? whole : columns;
  }
  return columns;
}

/// f(first, last, whether in blocks) for columns [first, last) of so many: those that are better in blocks, then
/// others.
template <class A, class F>
void for_each_form(Index columns, const Numerics& numerics, const F& f) {
  const Index blocks = columns_in_blocks<A>(columns, numerics);
  if (blocks > 0) f(Index(0), blocks, true);
  if (blocks < columns) f(blocks, columns, false);
}

/// The same, where what f takes of the scratch is given back after each.
template <class A, class F>
void for_each_form_in_turn(Index columns, const Numerics& numerics, Scratch& scratch, const F& f) {
  const auto mark = scratch.mark();
  for_each_form<A>(columns, numerics, [&](Index first, Index last, bool in_blocks) {
    f(first, last - first, in_blocks);
    scratch.rewind(mark);
  });
}

/// Bytes that so many columns of this depth take in either form, at most.
template <class A>
std::size_t activation_bytes(Index depth, Index count) {
  const Index registers = std::max(Columns<A>{depth, count}.size(), Blocks<A>{depth, count}.size());
  return std::size_t(registers) * sizeof(typename A::Register) + Scratch::alignment;
}

/// What the caller fills in.
template <class A>
Activations<A> make_activations(Index depth, Index count, bool in_blocks, Scratch& scratch) {
  if (in_blocks) return make_blocks<A>(depth, count, scratch);
  return make_columns<A>(depth, count, scratch);
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
void put_some(const typename A::Scalar* const* x, const typename A::Scalar* factor, const Activations<A>& to,
              Index first) {
  to.visit([&](const auto& its) { put_some<A>(x, factor, its, first, std::min(some<A>, its.count - first)); });
}

/// All columns of x. Memory comes from `scratch`; for_each(n, task) runs task(i).
template <class A, class ForEach>
Activations<A> activations_of(const ConstMatrixRef<typename A::Scalar>& x, bool in_blocks, Scratch& scratch,
                              const ForEach& for_each) {
  scratch.reserve(activation_bytes<A>(x.rows(), x.cols()));  // in either form: so that fewer columns never need more
  const Activations<A> all = make_activations<A>(x.rows(), x.cols(), in_blocks, scratch);
  for_each((x.cols() + some<A> - 1) / some<A>, [&](Index task) {
    const typename A::Scalar* from[some<A>];
    const Index first = task * some<A>;
    for (Index i = 0; i < std::min(some<A>, x.cols() - first); ++i) from[i] = x.data() + (first + i) * x.outerStride();
    put_some<A>(from, nullptr, all, first);
  });
  return all;
}

}  // namespace moe::inline MOE_TARGET::kernels
