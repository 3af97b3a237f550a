/// @file  How the weights of each type meet activations, a register at a time.
///
/// A product walks along the depth in steps. An arithmetic says what a step is made of:
///
///   Weight, Scalar        what weights are stored as; what activations and sums are
///   Register              so many weights, or activations, as are multiplied together
///   parts                 registers that a step fills
///   step                  numbers in a step
///   weights_per_step      elements of Weight in a step
///   load<p>(weights)      part p of the weights of a step
///   load_first<p>(weights, size)  the same where a row has no more than `size` of them, and zeros; need not be there
///   parts_in_turn         is there where the parts of a step are its numbers in turn, L of them each
///   arrange(x, to)        the activations of a step, as the weights will meet them
///   multiply_add          sum += w · x, lane by lane
///   blocks_pay            from so many tokens on, activations may be in blocks (blocks.hpp); `never` for never
///   column_alone          time of a column by itself, by that of one in a full block; need not be there
///
/// and, where there are blocks, in which a register holds one unit of each of as many tokens as it has lanes:
///
///   Unit                  what is the same number of bytes as a Scalar: a Scalar, or a pair of bfloat16
///   num_units(depth)      units of a column
///   put_rows              a few hidden rows, from a multiple of rows_together on, as units where they belong
///
/// A type of weight joins by an arithmetic of its own: experts and layers never see it.
#pragma once

#include <algorithm>
#include <concepts>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#include "moe/core/quantized.hpp"
#include "moe/core/types.hpp"
#include "moe/kernels/activation_codes.hpp"
#include "moe/kernels/bfloat16_pairs.hpp"
#include "moe/kernels/lanes.hpp"
#include "moe/kernels/load_padded.hpp"
#include "moe/kernels/multiply_add.hpp"
#include "moe/kernels/shuffle.hpp"
#include "moe/kernels/tiles.hpp"
#include "moe/kernels/widen.hpp"

namespace moe::inline MOE_TARGET::kernels {

inline constexpr Index never = std::numeric_limits<Index>::max();

/// When blocks may pay, of weights that lie as they are multiplied, and of those that are widened: docs/performance.md.
inline constexpr Index blocks_pay_in_place = register_bytes == 32 ? 13 : 9;
inline constexpr Index blocks_pay_if_widened = register_bytes == 64 ? 26 : register_bytes == 32 ? 15 : 17;
inline constexpr double column_alone_in_place = register_bytes == 64 ? 2.5 : register_bytes == 32 ? 1.25 : 2;
inline constexpr double column_alone_if_widened = register_bytes == 64 ? 1.25 : register_bytes == 32 ? 1.1 : 2;

/// What is asked of an arithmetic by whoever arranges activations for it; the tiles ask for the rest.
template <class A>
concept Arithmetic = requires(const typename A::Scalar* x, typename A::Register* to, Index depth) {
  requires sizeof(typename A::Weight) > 0 && sizeof(typename A::Unit) == sizeof(typename A::Scalar);
  requires A::parts >= 1 && A::step >= 1 && A::blocks_pay >= 1;
  { A::arrange(x, to) } -> std::same_as<void>;
  { A::num_units(depth) } -> std::same_as<Index>;
};

/// Products of float, or of double: narrower weights are widened.
template <class W>
struct Exact {
  using Weight = W;
  using Scalar = ActivationScalar<W>;
  using Register = Lanes<Scalar>;
  using Unit = Scalar;

  static constexpr Index L = lanes<Scalar>;
  static constexpr int parts = 2;
  static constexpr bool parts_in_turn = true;
  static constexpr Index step = parts * L;
  static constexpr Index weights_per_step = step;
  static constexpr Index blocks_pay = sizeof(W) < sizeof(Scalar) ? blocks_pay_if_widened : blocks_pay_in_place;
  static constexpr double column_alone = sizeof(W) < sizeof(Scalar) ? column_alone_if_widened : column_alone_in_place;
  static constexpr int rows_together = 1;

  template <int p>
  MOE_INLINE static Register load(const W* weights) {
    return widen(weights + p * L);
  }

  template <int p>
    requires std::is_same_v<W, Scalar>
  MOE_INLINE static Register load_first(const W* weights, Index size) {
    return load_padded<Register>(weights + p * L, size - p * L);
  }

  MOE_INLINE static void arrange(const Scalar* x, Register* to) {
    for (int p = 0; p < parts; ++p) to[p] = load_as<Register>(x + p * L);
  }

  MOE_INLINE static void multiply_add(Lanes<Scalar>& sum, const Register& w, const Register& x) {
    sum = kernels::multiply_add(w, x, sum);
  }

  static Index num_units(Index depth) { return depth; }

  /// rows[r][i] is hidden row first + r of the i-th token.
  MOE_INLINE static void put_rows(const Scalar* rows, Index num_rows, Index width, Index first, Unit* units) {
    std::memcpy(units + first * width, rows, std::size_t(num_rows * width) * sizeof(Scalar));
  }
};

/// bfloat16 is the upper half of a float: a register of pairs holds two of floats, those at even and at odd places,
/// which a shift and a mask take out. Activations are arranged alike.
template <>
struct Exact<bfloat16> {
  using Weight = bfloat16;
  using Scalar = float;
  using Register = Lanes<float>;
  using Unit = float;

  static constexpr Index L = lanes<float>;
  static constexpr int parts = 2;
  static constexpr Index step = parts * L;
  static constexpr Index weights_per_step = step;
  static constexpr Index blocks_pay = blocks_pay_if_widened;
  static constexpr double column_alone = column_alone_if_widened;
  static constexpr int rows_together = 1;

  template <int p>
  MOE_INLINE static Register load(const bfloat16* weights) {
    const auto pairs = load_as<Pairs>(weights);
    return as_floats(p == 0 ? pairs << 16 : pairs & 0xffff0000u);
  }

  template <int p>
  MOE_INLINE static Register load_first(const bfloat16* weights, Index size) {
    const auto pairs = load_padded<Pairs>(weights, size);
    return as_floats(p == 0 ? pairs << 16 : pairs & 0xffff0000u);
  }

  MOE_INLINE static void arrange(const float* x, Register* to) {
    const auto a = load_as<Register>(x), b = load_as<Register>(x + L);
    to[0] = evens<float>(a, b);
    to[1] = odds<float>(a, b);
  }

  MOE_INLINE static void multiply_add(Lanes<float>& sum, const Register& w, const Register& x) {
    sum = kernels::multiply_add(w, x, sum);
  }

  static Index num_units(Index depth) { return (depth + step - 1) / step * step; }

  MOE_INLINE static void put_rows(const float* rows, Index num_rows, Index width, Index first, Unit* units) {
    for (Index r = 0; r < num_rows; ++r) {
      const Index at = first + r, in_step = at % step;
      const Index place = at - in_step + (in_step % 2) * L + in_step / 2;
      std::memcpy(units + place * width, rows + r * width, std::size_t(width) * sizeof(float));
    }
  }
};

/// Numbers that are coded are decoded to float, a few rows at a time, and multiplied as such: products.hpp.
template <>
struct Exact<Quantized> : Exact<float> {
  using Weight = Quantized;
};

/// Products of bfloat16 pairs, summed in float: weights and activations are rounded.
template <class W>
struct Fast {
  static_assert(sizeof(W) == 2);
  using Weight = W;
  using Scalar = float;
  using Register = Pairs;
  using Unit = std::uint32_t;

  static constexpr Index L = lanes<float>;
  static constexpr int parts = 1;
  static constexpr Index step = 2 * L;
  static constexpr Index weights_per_step = step;
  static constexpr Index blocks_pay = has_tiles ? 7 : register_bytes == 64 ? 16 : 13;
  static constexpr double column_alone = has_tiles ? 1e9 : register_bytes == 64 ? 1.5 : 2;
  static constexpr bool in_tiles = has_tiles;
  static constexpr int rows_together = 2;

  template <int p>
  MOE_INLINE static Register load(const W* weights) {
    if constexpr (std::is_same_v<W, bfloat16>) {
      return load_as<Register>(weights);
    } else {
      return rounded_pairs(widen(weights), widen(weights + L));
    }
  }

  MOE_INLINE static void arrange(const float* x, Register* to) {
    to[0] = rounded_pairs(load_as<Lanes<float>>(x), load_as<Lanes<float>>(x + L));
  }

  MOE_INLINE static void multiply_add(Lanes<float>& sum, const Register& w, const Register& x) {
    add_pair_products(sum, w, x);
  }

  static Index num_units(Index depth) { return (depth + step - 1) / step * L; }

  /// Where the second of two rows is missing at the end, it is 0.
  MOE_INLINE static void put_rows(const float* rows, Index num_rows, Index width, Index first, Unit* units) {
    for (Index r = 0; r < num_rows; r += 2) {
      for (Index c = 0; c < width; c += L) {
        const float* const at = rows + r * width + c;
        const auto second = r + 1 < num_rows ? load_as<Lanes<float>>(at + width) : Lanes<float>{};
        store(units + (first + r) / 2 * width + c, pairs_of(load_as<Lanes<float>>(at), second));
      }
    }
  }
};

/// Products of integers, of weights that have an IntegerForm and activations that are coded in 8 bits, exact by
/// themselves, scaled and summed in float: integer_products.hpp. A block holds the codes of as many columns as a
/// register has lanes, or, the last one, of half as many.
template <>
struct Fast<Quantized> {
  using Weight = Quantized;
  using Scalar = float;
  using Register = Lanes<float>;
  using Unit = float;
  using Block = ManyActivationCodes<1>;
  using HalfBlock = ManyActivationCodes<2>;

  static constexpr Index L = lanes<float>;
  static constexpr int parts = int(sizeof(ActivationCodes) / register_bytes);
  static constexpr Index step = ActivationCodes::size;
  static constexpr Index blocks_pay = register_bytes == 64 ? 6 : 8;

  MOE_INLINE static void arrange(const float* x, Register* to) {
    ActivationCodes codes;
    code_activations(x, codes);
    store(to, codes);
  }

  /// A step of some tokens is one of a block.
  template <int parts>
  static void arrange_in_block(const float* const* x, Index count, ManyActivationCodes<parts>& to) {
    code_tokens(x, count, to);
  }

  static Index num_units(Index) { return 0; }  // blocks take less than columns do
};
// as num_units() says
static_assert(sizeof(ManyActivationCodes<2>) <= std::size_t(Fast<Quantized>::blocks_pay) * sizeof(ActivationCodes) ||
              Fast<Quantized>::blocks_pay > Fast<Quantized>::L / 2);
static_assert(sizeof(ManyActivationCodes<1>) <=
              std::size_t(std::max(Fast<Quantized>::blocks_pay, Fast<Quantized>::L / 2 + 1)) * sizeof(ActivationCodes));

/// Whether blocks are units, put there as hidden rows come.
template <class A>
concept HasUnits = requires { &A::put_rows; };

/// Whether blocks are made of a type of its own, a step of all their columns after the other.
template <class A>
concept HasBlock = requires { typename A::HalfBlock; };

/// Whether Products::fast means more than Products::exact here. Of coded weights it depends on their formats.
template <class W>
inline constexpr bool has_fast = has_fast_pairs && sizeof(W) == 2;
template <>
inline constexpr bool has_fast<Quantized> = false;

}  // namespace moe::inline MOE_TARGET::kernels
