/// @file  The two halves of an FFN, gated or not, for the tokens of one expert, rows [first, last) at a time.
#pragma once

#include <algorithm>
#include <variant>

#include "moe/core/concepts.hpp"
#include "moe/core/quantized.hpp"
#include "moe/core/scratch.hpp"
#include "moe/core/types.hpp"
#include "moe/experts/detail/token_batch.hpp"
#include "moe/kernels/blocks.hpp"
#include "moe/kernels/columns.hpp"
#include "moe/kernels/lanes.hpp"
#include "moe/kernels/low_rank.hpp"
#include "moe/kernels/multiply_add.hpp"
#include "moe/kernels/products.hpp"
#include "moe/kernels/rows.hpp"
#include "moe/kernels/transpose.hpp"
#include "moe/kernels/vectors.hpp"

namespace moe::inline MOE_TARGET::kernels {

namespace detail {

/// Matrices of the first half: gate and up, or up alone.
template <class Act, class S>
inline constexpr int first_matrices = GatedActivation<Act, S> ? 2 : 1;

/// h[i] = act(gate[i], up[i]), or act(up[i]), for one register at a time: so each element is computed alike wherever a
/// band begins.
template <class S, class Act>
MOE_INLINE void activate([[maybe_unused]] const S* gate, const S* up, S* hidden, Index size, const Act& act) {
  using Register = Eigen::Array<S, lanes<S>, 1>;
  eigen_assert(size % lanes<S> == 0);
  for (Index i = 0; i < size; i += lanes<S>) {
    const Eigen::Map<const Register> u(up + i);
    if constexpr (first_matrices<Act, S> == 2) {
      Eigen::Map<Register>(hidden + i) = act(Eigen::Map<const Register>(gate + i), u);
    } else {
      Eigen::Map<Register>(hidden + i) = act(u);
    }
  }
}

/// Numbers that are computed, column by column, before they are used: those of few tokens make long streams of rows.
inline constexpr Index numbers_at_once = 8192;

/// Rows that are computed before they are used, at least: whole panels.
template <class A>
inline constexpr Index least_rows = std::is_same_v<A, Fast<Quantized>> ? 2 * rows_in_group : rows_in_group;

template <class A>
Index rows_at_once(Index tokens) {
  return round_up(std::max(least_rows<A>, numbers_at_once / std::max<Index>(1, tokens)), A::step);
}

}  // namespace detail

/// Bytes that gate_up() and down() take from a scratch for so many tokens or fewer.
template <class A>
std::size_t scratch_bytes(Index d_model, Index d_ff, Index tokens) {
  const Index numbers = std::max(detail::least_rows<A> * tokens, detail::numbers_at_once) + A::step * tokens;
  return std::size_t(room_registers<A>(std::max(d_model, d_ff))) * sizeof(typename A::Register) +
         std::size_t(2 * numbers) * sizeof(typename A::Scalar) + 4 * Scratch::alignment;
}

/// What is added to gate and up, d_ff numbers each, and to the expert's answer, d_model numbers; null for nothing.
template <class S>
struct Biases {
  const S* gate = nullptr;
  const S* up = nullptr;
  const S* down = nullptr;
};

namespace detail {

/// Keeps what an activation reads of a tile, if anyone asks for it: pairs of rows (gate, up), or rows of up.
template <int matrices, class S>
void keep_read(const Kept<S>& kept, Index hidden_row, const Tile<S>& tile) {
  if (kept.up == nullptr) return;
  for (Index c = 0; c < tile.num_columns; ++c) {
    const Kept<S> to = kept.from(tile.column(c));
    for (Index r = 0; r < tile.num_rows; r += matrices) {
      if constexpr (matrices == 2) to.gate[hidden_row + r / 2] = tile(r, c);
      to.up[hidden_row + r / matrices] = tile(r + matrices - 1, c);
    }
  }
}

/// Keeps the first rows of a tile, which are hidden ones, if anyone asks for them.
template <class S>
void keep_hidden(const Kept<S>& kept, Index hidden_row, Index num_rows, const Tile<S>& tile) {
  if (kept.hidden == nullptr) return;
  for (Index c = 0; c < tile.num_columns; ++c) {
    for (Index r = 0; r < num_rows; ++r) kept.from(tile.column(c)).hidden[hidden_row + r] = tile(r, c);
  }
}

/// gate_up() for columns in blocks. A tile holds pairs of rows (gate, up), or rows of up, each as wide as the block.
template <class A, class S, class Act>
void gate_up_blocks(const StoredWeight<typename A::Weight>& w_gate, const StoredWeight<typename A::Weight>& w_up,
                    const Biases<S>& bias, Index first, Index last, const TokenBatch<A>& batch, const Blocks<A>& x,
                    const Blocks<A>& hidden, const Act& act, Scratch& scratch) {
  constexpr int matrices = first_matrices<Act, S>;
  const auto rows = matrices == 2 ? rows_of_both(w_gate, w_up, first, last) : rows_of(w_up, first, last);
  products<A>(rows, x, make_room<A>(x.depth, scratch), [&](const Tile<S>& tile) {
    const Index hidden_row = first + tile.first_row / matrices, width = tile.stride;
    for (Index r = 0; r < tile.num_rows; ++r) {
      const bool is_up = r % matrices == matrices - 1;
      const LowRank<S>& low_rank = is_up ? batch.low_ranks.up : batch.low_ranks.gate;
      add_low_rank(low_rank, hidden_row + r / matrices, tile.first_column, tile.num_columns, &tile(r, 0));
      const S* const b = is_up ? bias.up : bias.gate;
      if (b == nullptr) continue;
      for (Index c = 0; c < width; ++c) tile(r, c) += b[hidden_row + r / matrices];
    }
    keep_read<matrices>(batch.kept, hidden_row, tile);
    const Index hidden_rows = tile.num_rows / matrices;
    for (Index r = 0; r < hidden_rows; ++r) {
      activate(&tile(matrices * r, 0), &tile(matrices * r + matrices - 1, 0), &tile(r, 0), width, act);
    }
    keep_hidden(batch.kept, hidden_row, hidden_rows, tile);
    A::put_rows(tile.numbers, hidden_rows, width, hidden_row, hidden.block(tile.first_column));
  });
  const Index depth = hidden.depth, numbers = A::num_units(depth) * A::step / (A::parts * A::L);
  if (last != depth) return;
  const S zeros[full_block<A>] = {};
  for (Index row = round_up(depth, A::rows_together); row < numbers; row += A::rows_together) {
    for (Index column = 0; column < batch.count(); column += full_block<A>) {
      A::put_rows(zeros, 1, block_width<A>(batch.count() - column), row, hidden.block(column));
    }
  }
}

/// out = rows [first, last) of W · x + B·U + bias.
/// @param x     columns or blocks
/// @param bias  of all rows, or null
template <class A, class X, class S>
void affine_rows(const StoredWeight<typename A::Weight>& w, const LowRank<S>& low_rank, const S* bias, Index first,
                 Index last, const X& x, typename A::Register* room, S* out, Index stride) {
  const Index rows = last - first;
  products<A>(rows_of(w, first, last), x, room, out, stride);
  add_low_rank<S>(low_rank, first, rows, x.count, out, stride);
  for (Index c = 0; bias != nullptr && c < x.count; ++c) {
    for (Index r = 0; r < rows; ++r) out[r + c * stride] += bias[first + r];
  }
}

/// gate_up() a column after the other, of x and hidden that are both columns, or both blocks of steps.
template <class A, class X, class S, class Act>
MOE_KERNEL void gate_up_columns(const StoredWeight<typename A::Weight>& w_gate,
                                const StoredWeight<typename A::Weight>& w_up, const Biases<S>& bias, Index first,
                                Index last, const TokenBatch<A>& batch, const X& x, const X& hidden, const Act& act,
                                Scratch& scratch) {
  constexpr bool is_gated = first_matrices<Act, S> == 2;
  const Index height = rows_at_once<A>(batch.count());
  auto* const room = make_room<A>(x.depth, scratch);
  S* const ups = scratch.array<S>(height * batch.count());
  S* const gates = is_gated ? scratch.array<S>(height * batch.count()) : ups;
  for (Index top = first; top < last; top += height) {
    const Index rows = std::min(height, last - top);
    if constexpr (is_gated) {
      affine_rows<A>(w_gate, batch.low_ranks.gate, bias.gate, top, top + rows, x, room, gates, height);
    }
    affine_rows<A>(w_up, batch.low_ranks.up, bias.up, top, top + rows, x, room, ups, height);
    const Index steps = steps_of<A>(rows);
    for (Index c = 0; c < batch.count(); ++c) {
      S* const gate = gates + c * height;
      S* const up = ups + c * height;
      if (batch.kept.up) {
        if constexpr (is_gated) std::copy_n(gate, rows, batch.kept.from(c).gate + top);
        std::copy_n(up, rows, batch.kept.from(c).up + top);
      }
      S* const made = gate;
      activate(gate, up, made, steps * A::step, act);
      std::fill(made + rows, made + steps * A::step, S(0));
      if (batch.kept.hidden) std::copy_n(made, rows, batch.kept.from(c).hidden + top);
      if (const Index first_of_some = c / A::L * A::L; c + 1 == std::min(first_of_some + A::L, batch.count())) {
        put_made<A>(gates + first_of_some * height, height, steps, c + 1 - first_of_some, hidden, first_of_some,
                    top / A::step);
      }
    }
  }
}

}  // namespace detail

/// hidden rows [first, last) = act(W_gate · x + b_gate, W_up · x + b_up), or act(W_up · x + b_up), which does not read
/// w_gate. `first` is a multiple of A::step; `last` is one too, or d_ff.
template <class A, class S, class Act>
void gate_up(const StoredWeight<typename A::Weight>& w_gate, const StoredWeight<typename A::Weight>& w_up,
             const Biases<S>& bias, Index first, Index last, const TokenBatch<A>& batch, const Act& act,
             Scratch& scratch) {
  if (first == last) return;
  batch.x.visit([&]<class X>(const X& x) {
    if constexpr (are_units<X>) {
      detail::gate_up_blocks(w_gate, w_up, bias, first, last, batch, x, std::get<X>(batch.hidden), act, scratch);
    } else {
      detail::gate_up_columns(w_gate, w_up, bias, first, last, batch, x, std::get<X>(batch.hidden), act, scratch);
    }
  });
}

namespace detail {

/// y[c][0, num_rows) += weight[c] · tile(:, c), for a tile of max_rows whole registers of tokens: turned around, a
/// square at a time, so that each token's numbers lie side by side.
template <int max_rows, class S>
MOE_KERNEL void add_turned(const S* tile, Index num_rows, Index stride, Index columns, const S* weight, S* const* y,
                           Index row) {
  constexpr int L = lanes<S>;
  constexpr auto squares = (max_rows + L - 1) / L;
  for (Index c = 0; c < columns; c += L) {
    const Index filled = std::min<Index>(L, columns - c);
    unroll<squares>([&](auto q) {
      constexpr int first = q * L, height = std::min(L, max_rows - first);
      Lanes<S> square[L] = {};
      repeat<height>([&](auto r) { square[r] = load_as<Lanes<S>>(tile + (first + r) * stride + c); });
      transpose<S>(square);
      for (Index i = 0; i < filled; ++i) {
        const S* const answer = reinterpret_cast<const S*>(&square[i]);
        const S times = weight ? weight[c + i] : S(1);
        S* const to = y[c + i] + row + first;
        if (num_rows >= first + height) {
          for (int r = 0; r < height; ++r) to[r] = multiply_add(times, answer[r], to[r]);
        } else {
          for (Index r = 0; r < num_rows - first; ++r) to[r] = multiply_add(times, answer[r], to[r]);
        }
      }
    });
  }
}

/// down() for columns in blocks.
template <class A, class S>
void down_blocks(const StoredWeight<typename A::Weight>& w_down, const Biases<S>& bias, Index first, Index last,
                 const TokenBatch<A>& batch, const Blocks<A>& hidden, Scratch& scratch) {
  products<A>(rows_of(w_down, first, last), hidden, make_room<A>(hidden.depth, scratch), [&](const Tile<S>& tile) {
    add_low_rank(batch.low_ranks.down, first, tile);
    for (Index r = 0; bias.down != nullptr && r < tile.num_rows; ++r) {
      for (Index c = 0; c < tile.num_columns; ++c) tile(r, c) += bias.down[first + tile.row(r)];
    }
    S* const* const y = batch.y + tile.first_column;
    const S* const weight = batch.weight ? batch.weight + tile.first_column : nullptr;
    add_turned<panel_rows<A>>(tile.numbers, tile.num_rows, tile.stride, tile.num_columns, weight, y,
                              first + tile.first_row);
  });
}

/// down() a column after the other, of hidden numbers that are columns, or blocks of steps.
template <class A, class X, class S>
void down_columns(const StoredWeight<typename A::Weight>& w_down, const Biases<S>& bias, Index first, Index last,
                  const TokenBatch<A>& batch, const X& hidden, Scratch& scratch) {
  const Index height = rows_at_once<A>(batch.count());
  auto* const room = make_room<A>(hidden.depth, scratch);
  S* const answers = scratch.array<S>(height * batch.count());
  for (Index top = first; top < last; top += height) {
    const Index rows = std::min(height, last - top);
    affine_rows<A>(w_down, batch.low_ranks.down, bias.down, top, top + rows, hidden, room, answers, height);
    for (Index c = 0; c < batch.count(); ++c) {
      add_scaled(batch.weight ? batch.weight[c] : S(1), answers + c * height, batch.y[c] + top, rows);
    }
  }
}

}  // namespace detail

/// Adds weight · (W_down · hidden + b_down) to rows [first, last) of y.
template <class A, class S>
void down(const StoredWeight<typename A::Weight>& w_down, const Biases<S>& bias, Index first, Index last,
          const TokenBatch<A>& batch, Scratch& scratch) {
  batch.hidden.visit([&]<class X>(const X& hidden) {
    if constexpr (are_units<X>) {
      detail::down_blocks(w_down, bias, first, last, batch, hidden, scratch);
    } else {
      detail::down_columns(w_down, bias, first, last, batch, hidden, scratch);
    }
  });
}

}  // namespace moe::inline MOE_TARGET::kernels
