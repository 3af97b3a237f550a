/// @file  Numbers of 8 bits with an exponent: FP8 E4M3 with scales of tensors, rows or blocks.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "moe/core/quantized.hpp"
#include "moe/formats/detail/rows.hpp"
#include "moe/kernels/bytes.hpp"
#include "moe/kernels/rounding.hpp"
#include "moe/kernels/widen.hpp"

namespace moe::inline MOE_TARGET {

namespace detail {

/// to[i] = E4M3 number i · scale, rounded to Out. E4M3 is widened as the float16 that has its bits: 2^-8 of it,
/// subnormals too.
template <class Out>
MOE_INLINE void decode_e4m3(const std::byte* codes, Index count, float scale, float* to) {
  if (!(std::abs(scale) < 0x1p119F)) {  // 2^8 · scale is none
    for (Index i = 0; i < count; ++i) to[i] = number_at<E4m3>(codes, i) * scale;
    round_all<Out>(to, count);
    return;
  }
  constexpr int step = 2 * kernels::lanes<float>;
  using Halves = kernels::Lanes<std::int16_t>;
  const float factor = scale * 256;
  in_steps<step, 8>(codes, count, to, [&](const std::byte* from, float* into) __attribute__((always_inline)) {
    const Halves finite = (kernels::halves_of(from) << 7) & std::int16_t(0xbf80 - 0x10000);
    const Halves bits = finite | ((finite + std::int16_t(0x80)) & std::int16_t(0x4000));  // NaN has all bits but a sign
    alignas(kernels::register_bytes) float16 numbers[step];
    std::memcpy(static_cast<void*>(numbers), &bits, sizeof numbers);
    kernels::store(into, kernels::product_rounded_to<Out>(kernels::widen(numbers) * factor));
    kernels::store(into + step / 2, kernels::product_rounded_to<Out>(kernels::widen(numbers + step / 2) * factor));
  });
}

template <class Scale, class Out>
void decode_fp8(const QuantizedMatrix& matrix, Index row, Index first, Index count, float* to) {
  const std::byte *codes = matrix.codes.row(row), *scales = matrix.scales.row(row);
  constexpr Index usual = std::is_same_v<Scale, E8m0> ? 32 : 128;
  each_group<usual>(matrix.scales.cols_together, first, first + count, [&](Index group, Index at, auto size) {
    const float scale = number_at<Scale>(scales, group);
    if (std::is_same_v<Scale, E8m0> && scale >= 0x1p-124F) {  // bfloat16 holds the products
      decode_e4m3<float>(codes + at, size, scale, to + (at - first));
    } else {
      decode_e4m3<Out>(codes + at, size, scale, to + (at - first));
    }
  });
}

}  // namespace detail

/// w = q · scale, rounded to Out: DeepSeek-V3's and everybody's FP8. `codes` are bytes, `scales` are of Scale, one for
/// rows_together × cols_together of them. (`bits` of the formats of safetensors are of codes: how many share a scale is
/// the matrix's.)
template <class Scale, class Out = float>
inline constexpr NumberFormat fp8 = {"FP8 E4M3", 1, 8, detail::decode_fp8<Scale, Out>};

/// w = q · 2^(scale - 127), rounded to bfloat16: MXFP8, of which 32 numbers of a row share a scale of one byte.
/// Open Compute Project 2023, "Microscaling Formats (MX)", §5.1.
inline constexpr NumberFormat mxfp8 = {"MXFP8", 1, 8, detail::decode_fp8<detail::E8m0, bfloat16>};

}  // namespace moe::inline MOE_TARGET
