/// @file  NVFP4, as safetensors have it: numbers of 4 bits, of which 16 share an FP8 scale.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "moe/core/quantized.hpp"
#include "moe/formats/codes.hpp"
#include "moe/formats/detail/rows.hpp"
#include "moe/formats/fp8.hpp"
#include "moe/kernels/lookup.hpp"
#include "moe/kernels/rounding.hpp"

namespace moe::inline MOE_TARGET {

/// What is done with the scale of the whole matrix, its `factor`.
enum class GlobalScale {
  divides,     ///< e2m1 · (scale / factor), compressed-tensors' "weight_global_scale"
  multiplies,  ///< e2m1 · (scale · factor), ModelOpt's "weight_scale_2"; there is no negative zero
  none,        ///< MLX
};

namespace detail {

/// What numbers of a group are multiplied by, where their scale is `scale`: a float, or a register of them.
template <GlobalScale global, class Scale>
MOE_INLINE Scale with_global(const Scale& scale, float factor) {
  if constexpr (global == GlobalScale::divides) return scale / factor;
  if constexpr (global == GlobalScale::multiplies) return scale * factor;
  return scale;
}

/// Decodes whole groups of 16 to bfloat16's numbers. Each is the product of a power of two and one of two numbers that
/// are rounded, 1 and 1.5 times the scale; and of these some registers are found at a time.
/// @pre  a factor with which no number is too small or too large for that
template <GlobalScale global>
MOE_INLINE void decode_sixteens(const std::byte* from, const std::byte* scales, float factor, Index num_groups,
                                float* to) {
  using kernels::Lanes, kernels::Pairs;
  constexpr float zero = global == GlobalScale::multiplies ? 0.F : -0.F;
  constexpr float powers[16] = {0, 0.5F, 1, 1, 2, 2, 4, 4, zero, -0.5F, -1, -1, -2, -2, -4, -4};
  constexpr std::uint32_t yes = ~0U;
  constexpr std::uint32_t has_half[16] = {0, 0, 0, yes, 0, yes, 0, yes, 0, 0, 0, yes, 0, yes, 0, yes};
  constexpr Index step = 4 * kernels::lanes<float>;  // what waits for a division waits once
  const kernels::Sixteen power = kernels::load_sixteen(powers);
  for (Index first = 0; first < num_groups; first += step) {
    const Index some = std::min(step, num_groups - first);
    alignas(kernels::register_bytes) float scale[step] = {}, one[step], with_half[step];
    decode_e4m3<float>(scales + first, some, 1, scale);
    for (Index i = 0; i < step; i += kernels::lanes<float>) {
      const Lanes<float> its = with_global<global>(kernels::load_as<Lanes<float>>(scale + i), factor);
      kernels::store(one + i, kernels::product_rounded_to<bfloat16>(its));
      kernels::store(with_half + i, kernels::product_rounded_to<bfloat16>(kernels::product(its * 1.5F)));
    }
    for (Index g = first; g < first + some; ++g) {
      kernels::Sixteen table;
      kernels::repeat<kernels::Sixteen::num_parts>([&](int p) __attribute__((always_inline)) {
        const auto which = kernels::load_as<Pairs>(has_half + p * kernels::lanes<float>);
        const auto once = (Pairs)codes::all(one[g - first]), more = (Pairs)codes::all(with_half[g - first]);
        const Pairs scaled = kernels::detail::select(which, more, once);
        table.part[p] = power.part[p] * (Lanes<float>)scaled;
      });
      decode_nibbles(from + 8 * g, std::integral_constant<Index, 16>(), table, to + 16 * g);
    }
  }
}

template <GlobalScale global, class Out>
void decode_nvfp4(const QuantizedMatrix& matrix, Index row, Index first, Index count, float* to) {
  constexpr float zero = global == GlobalScale::multiplies ? 0.F : -0.F;
  constexpr float e2m1[16] = {0, 0.5F, 1, 1.5F, 2, 3, 4, 6, zero, -0.5F, -1, -1.5F, -2, -3, -4, -6};
  const std::byte *codes = matrix.codes.row(row), *scales = matrix.scales.row(row);
  const kernels::Sixteen numbers = kernels::load_sixteen(e2m1);
  const Index together = matrix.scales.cols_together, end = first + count;
  const float size = std::abs(matrix.factor);
  if (std::is_same_v<Out, bfloat16> && together == 16 && first % 16 == 0 && size > 0x1p-80F && size < 0x1p80F) {
    const Index num_groups = count / 16;
    decode_sixteens<global>(codes + first / 2, scales + first / 16, matrix.factor, num_groups, to);
    first += num_groups * 16;
    to += num_groups * 16;
    if (first == end) return;
  }
  each_group<16>(together, first, end, [&](Index group, Index at, auto some) {
    const float scale = with_global<global>(number_at<E4m3>(scales, group), matrix.factor);
    const auto scaled = kernels::each_part(numbers, [&](const auto& part) __attribute__((always_inline)) {
      return kernels::product_rounded_to<Out>(part * scale);
    });
    decode_nibbles(codes + std::size_t(at) / 2, some, scaled, to + (at - first));
  });
}

}  // namespace detail

/// `codes` have the low four bits of a byte first; `scales` are E4M3, one for 16 numbers of a row.
template <GlobalScale global, class Out>
inline constexpr NumberFormat nvfp4 = {"NVFP4", 2, 4, detail::decode_nvfp4<global, Out>};

}  // namespace moe::inline MOE_TARGET
