/// @file  Integers of 2 to 8 bits with scales of groups: compressed-tensors, GPTQ, AWQ, torchao, bitsandbytes' int8.
#pragma once

#include <cstddef>
#include <cstdint>

#include "moe/core/quantized.hpp"
#include "moe/formats/detail/rows.hpp"
#include "moe/kernels/lookup.hpp"
#include "moe/kernels/rounding.hpp"

namespace moe::inline MOE_TARGET {

namespace detail {

inline constexpr float to_fifteen[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};

/// What is compiled for codes of so many bits: 4 and 8 for themselves, all others as 0.
constexpr int compiled_bits(int bits) { return bits == 4 || bits == 8 ? bits : 0; }

/// f(codes as floats) of `count` numbers from a column on, of `bits` bits each.
template <int compiled, class F>
MOE_INLINE void decode_integers(const std::byte* codes, int bits, Index at, Index count, float* to, const F& f) {
  if constexpr (compiled == 4) {
    decode_nibbles(codes + std::size_t(at) / 2, count, kernels::each_part(kernels::load_sixteen(to_fifteen), f), to);
  } else if constexpr (compiled == 8) {
    decode_bytes<std::uint8_t>(codes + at, count, to, f);
  } else {
    decode_bits(codes + at * bits / 8, bits, count, to, f);
  }
}

template <int compiled, class Scale, class Out>
void decode_packed(const QuantizedMatrix& matrix, Index row, Index first, Index count, float* to) {
  const int bits = int(matrix.format().bits);
  const std::byte *codes = matrix.codes.row(row), *scales = matrix.scales.row(row);
  const std::byte* const zeros = matrix.zeros.data == nullptr ? nullptr : matrix.zeros.row(row);
  each_group<32>(matrix.scales.cols_together, first, first + count, [&](Index group, Index at, auto size) {
    const float scale = number_at<Scale>(scales, group);
    const float zero = zeros == nullptr ? float(1 << (bits - 1)) : float(std::uint8_t(zeros[group]));
    decode_integers<compiled>(codes, bits, at, size, to + (at - first),
                              [&](const kernels::Lanes<float>& q) __attribute__((always_inline)) {
                                return kernels::product_rounded_to<Out>((q - zero) * scale);
                              });
  });
}

template <int compiled, class Scale, class Out>
void decode_by_index(const QuantizedMatrix& matrix, Index row, Index first, Index count, float* to) {
  const int bits = int(matrix.format().bits);
  const std::byte *codes = matrix.codes.row(row), *scales = matrix.scales.row(row);
  const std::byte* const zeros = matrix.zeros.data == nullptr ? nullptr : matrix.zeros.row(row);
  decode_integers<compiled>(codes, bits, first, count, to,
                            [](const kernels::Lanes<float>& q) __attribute__((always_inline)) { return q; });
  for (Index i = 0; i < count; ++i) {
    const Index group = matrix.group_of[first + i];
    const float zero = zeros == nullptr ? float(1 << (bits - 1)) : float(std::uint8_t(zeros[group]));
    to[i] = (to[i] - zero) * number_at<Scale>(scales, group);
  }
  round_all<Out>(to, count);
}

template <class Scale, class Out, bool has_factor>
void decode_int8(const QuantizedMatrix& matrix, Index row, Index first, Index count, float* to) {
  const std::byte *codes = matrix.codes.row(row), *scales = matrix.scales.row(row);
  const std::byte* const zeros = matrix.zeros.data == nullptr ? nullptr : matrix.zeros.row(row);
  each_group<32>(matrix.scales.cols_together, first, first + count, [&](Index group, Index at, auto size) {
    const float scale = number_at<Scale>(scales, group);
    const float zero = zeros == nullptr ? 0 : float(std::int8_t(zeros[group]));
    decode_bytes<std::int8_t>(codes + at, size, to + (at - first),
                              [&](const kernels::Lanes<float>& q) __attribute__((always_inline)) {
                                const auto number = (q - zero) * scale;
                                return kernels::product_rounded_to<Out>(has_factor ? number * matrix.factor : number);
                              });
  });
}

inline constexpr const char* integer_names[9] = {"", "", "INT2", "INT3", "INT4", "INT5", "INT6", "INT7", "INT8"};

}  // namespace detail

/// w = (q - zero) · scale, rounded to Out. `codes` lie one after the other, low bits first; `zeros` are bytes, one for
/// each of the `scales`, or else the middle: 2^(bits - 1).
template <int bits, class Scale, class Out>
inline constexpr NumberFormat packed_integers = {detail::integer_names[bits], detail::numbers_to_a_byte(bits), bits,
                                                 detail::decode_packed<detail::compiled_bits(bits), Scale, Out>};

/// The same where `group_of` says of which group each column is: GPTQ with act-order.
template <int bits, class Scale, class Out>
inline constexpr NumberFormat indexed_integers = {detail::integer_names[bits], detail::numbers_to_a_byte(bits), bits,
                                                  detail::decode_by_index<detail::compiled_bits(bits), Scale, Out>};

/// w = (q - zero) · scale, rounded to Out, of signed bytes; `zeros` are signed bytes as well, or else 0.
template <class Scale, class Out>
inline constexpr NumberFormat int8 = {"INT8", 1, 8, detail::decode_int8<Scale, Out, false>};

/// w = q · scale · factor, from the left: bitsandbytes' 8 bits, where the factor is 1/127 as it has it.
inline constexpr NumberFormat int8_of_127 = {"INT8", 1, 8, detail::decode_int8<float, float, true>};
inline constexpr float one_of_127 = 7.874015718698502e-3F;

}  // namespace moe::inline MOE_TARGET
