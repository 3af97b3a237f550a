/// @file  The two halves of a gated FFN for the tokens of one expert, rows [first, last) at a time.
#pragma once

#include <algorithm>

#include "moe/dispatch.hpp"
#include "moe/kernels/lanes.hpp"
#include "moe/kernels/products.hpp"
#include "moe/kernels/rows.hpp"
#include "moe/kernels/token_batch.hpp"
#include "moe/kernels/transpose.hpp"
#include "moe/scratch.hpp"
#include "moe/types.hpp"

namespace moe::kernels {

namespace detail {

/// h[i] = act(gate[i], up[i]) for one register at a time: so each element is computed alike wherever a band begins.
template <class S, class Act>
MOE_KERNEL void activate(const S* gate, const S* up, S* hidden, Index size, const Act& act) {
  using Register = Eigen::Array<S, lanes<S>, 1>;
  eigen_assert(size % lanes<S> == 0);
  for (Index i = 0; i < size; i += lanes<S>) {
    Eigen::Map<Register>(hidden + i) = act(Eigen::Map<const Register>(gate + i), Eigen::Map<const Register>(up + i));
  }
}

}  // namespace detail

/// Bytes that gate_up() and down() take from a scratch for so many rows and any batch: fewer tokens may need more.
template <class S>
std::size_t scratch_bytes(Index d_model, Index d_ff, Index rows) {
  const Index in_place = 2 * padded<S>(rows) * packing_pays;
  const Index packed = panel_rows * (std::max(d_model, d_ff) + lanes<S> + full_block<S>);
  return std::size_t(std::max(in_place, packed)) * sizeof(S) + 4 * Scratch::alignment;
}

/// What is added to gate and up, d_ff numbers each, and to the expert's answer, d_model numbers; null for nothing.
template <class S>
struct Biases {
  const S* gate = nullptr;
  const S* up = nullptr;
  const S* down = nullptr;
};

/// hidden rows [first, last) = act(W_gate · x + b_gate, W_up · x + b_up); for weights on the input, of weight · x.
/// `first` is a multiple of lanes<S>; `last` is one too, or d_ff.
template <class W, class S, class Act>
void gate_up(const WeightMap<W>& w_gate, const WeightMap<W>& w_up, const Biases<S>& bias, Index first, Index last,
             const TokenBatch<S>& batch, const Act& act, Scratch& scratch) {
  if (first == last) return;
  const auto rows = rows_of_both(w_gate, w_up, first, last);
  const bool on_input = batch.weight_on == WeightOn::input;
  if (batch.x.packed) {
    // A tile holds pairs of rows (gate, up), each as wide as the block of tokens.
    packed_products(rows, batch.x, scratch,
                    [&](Index row, Index num_rows, Index column, Index columns, S* tile, Index width) {
                      if (on_input) {
                        for (Index r = 0; r < num_rows; ++r) {
                          for (Index c = 0; c < columns; ++c) tile[r * width + c] *= batch.weight[column + c];
                        }
                      }
                      for (Index r = 0; r < num_rows; ++r) {
                        const S* const b = ((row + r) & 1) ? bias.up : bias.gate;
                        if (b == nullptr) continue;
                        for (Index c = 0; c < width; ++c) tile[r * width + c] += b[first + (row + r) / 2];
                      }
                      S* hidden = batch.hidden_data + column * batch.hidden.depth + (first + row / 2) * width;
                      for (Index r = 0; r < num_rows; r += 2) {
                        detail::activate(tile + r * width, tile + (r + 1) * width, hidden + r / 2 * width, width, act);
                      }
                    });
    return;
  }
  const Index height = (last - first + lanes<S> - 1) / lanes<S> * lanes<S>;
  auto gate = scratch.matrix<S>(height, batch.count());
  auto up = scratch.matrix<S>(height, batch.count());
  gate.bottomRows(height - (last - first)).setZero();
  up.bottomRows(height - (last - first)).setZero();
  products_in_place(rows, batch.x, [&](Index row, Index num_rows, Index column, Index columns, S* tile, Index stride) {
    for (Index r = 0; r < num_rows; ++r) {
      auto& out = ((row + r) & 1) ? up : gate;
      const S* const b = ((row + r) & 1) ? bias.up : bias.gate;
      const S added = b ? b[first + (row + r) / 2] : S(0);
      for (Index c = 0; c < columns; ++c) {
        out((row + r) / 2, column + c) = tile[r * stride + c] * (on_input ? batch.weight[column + c] : S(1)) + added;
      }
    }
  });
  for (Index c = 0; c < batch.count(); ++c) {
    S* hidden = batch.hidden_data + c * batch.hidden_stride + first;
    detail::activate(gate.data() + c * height, up.data() + c * height, hidden, height, act);
  }
}

namespace detail {

/// y[c][0, num_rows) += weight[c] · tile(:, c), for a tile of panel_rows whole registers of packed tokens: turned
/// around, a square at a time, so that each token's numbers lie side by side.
template <class S>
MOE_KERNEL void add_turned(const S* tile, Index num_rows, Index stride, Index columns, const S* weight, S* const* y,
                           Index row) {
  constexpr int L = lanes<S>;
  constexpr auto squares = (panel_rows + L - 1) / L;
  for (Index c = 0; c < columns; c += L) {
    const Index filled = std::min<Index>(L, columns - c);
    unroll<squares>([&](auto q) {
      constexpr int first = q * L, height = std::min(L, panel_rows - first);
      Lanes<S> square[L] = {};
      unroll<height>([&](auto r) { square[r] = load_as<Lanes<S>>(tile + (first + r) * stride + c); });
      transpose<S>(square);
      for (Index i = 0; i < filled; ++i) {
        using Column = Eigen::Array<S, height, 1>;
        const auto answer =
            Eigen::Map<const Column>(reinterpret_cast<const S*>(&square[i])) * (weight ? weight[c + i] : S(1));
        S* to = y[c + i] + row + first;
        if (num_rows >= first + height) {
          Eigen::Map<Column>(to) += answer;
        } else {
          for (Index r = 0; r < num_rows - first; ++r) to[r] += answer[r];
        }
      }
    });
  }
}

}  // namespace detail

/// Adds weight · (W_down · hidden + b_down) to rows [first, last) of y; for weights on the input, without the weight.
template <class W, class S>
void down(const WeightMap<W>& w_down, const Biases<S>& bias, Index first, Index last, const TokenBatch<S>& batch,
          Scratch& scratch) {
  const bool on_input = batch.weight_on == WeightOn::input;
  products(rows_of(w_down, first, last), batch.hidden, scratch,
           [&](Index row, Index num_rows, Index column, Index columns, const S* tile, Index stride) {
             if (batch.hidden.packed) {
               const S* weight = on_input ? nullptr : batch.weight + column;
               detail::add_turned(tile, num_rows, stride, columns, weight, batch.y + column, first + row);
               return;
             }
             for (Index c = 0; c < columns; ++c) {
               S* y = batch.y[column + c] + first + row;
               const S weight = on_input ? S(1) : batch.weight[column + c];
               for (Index r = 0; r < num_rows; ++r) y[r] += weight * tile[r * stride + c];
             }
           });
  if (bias.down == nullptr) return;
  for (Index c = 0; c < batch.count(); ++c) {
    const S weight = on_input ? S(1) : batch.weight[c];
    for (Index r = first; r < last; ++r) batch.y[c][r] += weight * bias.down[r];
  }
}

}  // namespace moe::kernels
