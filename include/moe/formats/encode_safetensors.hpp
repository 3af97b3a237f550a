/// @file  The 8 and 4 bits of safetensors files, from numbers: the bytes that each format's own software writes.
///
/// Formulas: transformers 5.23.0, Fp8Quantize; compressed-tensors 0.20.0, calculate_qparams, generate_gparam and its
/// compressors. tests/real_quant has what they wrote. Arithmetic is of the weights' own type W, as there: a scale of
/// bfloat16 weights is bfloat16.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "moe/core/types.hpp"
#include "moe/formats/encode_number.hpp"

namespace moe::inline MOE_TARGET::encoding {

/// Rounded to W, as float.
template <class W>
float rounded_to(float x) {
  if constexpr (std::is_same_v<W, bfloat16>) {
    return from_bfloat16(to_bfloat16(x));
  } else if constexpr (std::is_same_v<W, float16>) {
    return from_half(to_half(x));
  } else {
    return x;
  }
}

/// The largest magnitude of (rows × cols) numbers, `stride` from row to row.
inline float largest_magnitude(const float* x, Index rows, Index cols, Index stride) {
  float largest = 0;
  for (Index r = 0; r < rows; ++r)
    for (Index c = 0; c < cols; ++c) largest = std::max(largest, std::fabs(x[r * stride + c]));
  return largest;
}

/// A block of E4M3 with one scale: x = code · the scale that is returned (weight_scale_inv), 1 of a block of zeros.
/// @param x      (rows × cols), `stride` from row to row
/// @param codes  the same
inline float encode_fp8(const float* x, Index rows, Index cols, Index stride, std::uint8_t* codes) {
  const float largest = largest_magnitude(x, rows, cols, stride);
  const float factor = largest > 0 ? product(1 / largest, 448) : 1.0F;
  for (Index r = 0; r < rows; ++r)
    for (Index c = 0; c < cols; ++c) codes[r * stride + c] = to_e4m3(product(x[r * stride + c], factor));
  return 1 / factor;
}

/// Numbers of 4 bits with one scale: x = (code − 8) · the scale that is returned. The scale of zeros is W's ε.
/// @param code  (count)
template <class W>
float encode_int4(const float* x, Index count, std::uint8_t* code) {
  using Numbers = std::numeric_limits<float>;
  constexpr float epsilon = std::is_same_v<W, bfloat16>  ? 0x1p-7F
                            : std::is_same_v<W, float16> ? 0x1p-10F
                                                         : Numbers::epsilon();
  const float rounded = rounded_to<W>(largest_magnitude(x, 1, count, count) / 7.5F);
  const float scale = rounded == 0 ? epsilon : rounded;
  for (Index i = 0; i < count; ++i) {
    const float place = rounded_to<W>(x[i] / scale);
    code[i] = std::uint8_t(8 + (place > 7 ? 7 : place > -8 ? round_to_even(place) : -8));
  }
  return scale;
}

/// Two codes of 4 bits a byte, the first in the low half: of E2M1, and of INT4 as words of low bytes first.
inline void write_nibbles_in_turn(std::byte* to, const std::uint8_t* code, Index count) {
  for (Index i = 0; i < count; i += 2) to[i / 2] = std::byte(code[i] | unsigned(code[i + 1]) << 4);
}

/// 32 numbers of E2M1 with the exponent that is returned: x = 2^(exponent − 127) · number. The largest magnitude is
/// rounded to two bits first, so that 7 and more take the next exponent.
/// @param code  (32)
inline std::uint8_t encode_mxfp4(const float* x, std::uint8_t* code) {
  const std::uint32_t largest = std::bit_cast<std::uint32_t>(largest_magnitude(x, 1, 32, 32));
  const int exponent = std::clamp(int((largest + (1U << 21)) >> 23) - 2, 0, 254);
  const float scale = power_of_two(exponent);
  for (int i = 0; i < 32; ++i) code[i] = to_e2m1(x[i] / scale);
  return std::uint8_t(exponent);
}

/// What all scales of a matrix are multiplied by, so that they use the range of E4M3: weight_global_scale.
/// @param largest  magnitude of the matrix
inline float nvfp4_global_scale(float largest) {
  const float scale = product(1 / std::max(largest, std::numeric_limits<float>::min()), 2688);
  return std::isfinite(scale) ? scale : 1.0F;
}

/// 16 numbers of E2M1 with the scale of E4M3 that is returned: x = number · scale / global_scale.
/// @param code  (16)
template <class W>
std::uint8_t encode_nvfp4(const float* x, float global_scale, std::uint8_t* code) {
  const float local = rounded_to<W>(largest_magnitude(x, 1, 16, 16) / 6);
  std::uint8_t scale = to_e4m3(product(local, global_scale));
  if (scale == 0) scale = 0x20;  // 0.125
  const float divisor = from_e4m3(scale) / global_scale;
  for (int i = 0; i < 16; ++i) code[i] = to_e2m1(x[i] / divisor);
  return scale;
}

}  // namespace moe::inline MOE_TARGET::encoding
