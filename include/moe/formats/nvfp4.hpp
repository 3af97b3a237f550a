/// @file  NVFP4, as safetensors have it: numbers of 4 bits, of which 16 share an FP8 scale.
#pragma once

#include "moe/core/quantized.hpp"
#include "moe/formats/detail/rows.hpp"
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

template <GlobalScale global, class Out>
void decode_nvfp4(const QuantizedMatrix& matrix, Index row, Index first, Index count, float* to) {
  constexpr float zero = global == GlobalScale::multiplies ? 0.F : -0.F;
  constexpr float e2m1[16] = {0, 0.5F, 1, 1.5F, 2, 3, 4, 6, zero, -0.5F, -1, -1.5F, -2, -3, -4, -6};
  const std::byte *codes = matrix.codes.row(row), *scales = matrix.scales.row(row);
  const kernels::Sixteen numbers = kernels::load_sixteen(e2m1);
  each_group<16>(matrix.scales.cols_together, first, first + count, [&](Index group, Index at, auto size) {
    float scale = number_at<E4m3>(scales, group);
    if constexpr (global == GlobalScale::divides) scale /= matrix.factor;
    if constexpr (global == GlobalScale::multiplies) scale *= matrix.factor;
    const auto scaled = kernels::each_part(numbers, [&](const auto& part) __attribute__((always_inline)) {
      return kernels::product_rounded_to<Out>(part * scale);
    });
    decode_nibbles(codes + std::size_t(at) / 2, size, scaled, to + (at - first));
  });
}

}  // namespace detail

/// `codes` have the low four bits of a byte first; `scales` are E4M3, one for 16 numbers of a row.
template <GlobalScale global, class Out>
inline constexpr NumberFormat nvfp4 = {"NVFP4", 2, 4, detail::decode_nvfp4<global, Out>};

}  // namespace moe::inline MOE_TARGET
