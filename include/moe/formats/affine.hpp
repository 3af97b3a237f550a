/// @file  Integers of 2 to 8 bits with a scale and a bias of each group: MLX.
#pragma once

#include <cstdint>

#include "moe/core/quantized.hpp"
#include "moe/formats/detail/rows.hpp"
#include "moe/formats/integers.hpp"
#include "moe/kernels/rounding.hpp"

namespace moe::inline MOE_TARGET {

namespace detail {

template <int compiled, class T>
void decode_affine(const QuantizedMatrix& matrix, Index row, Index first, Index count, float* to) {
  const std::byte *codes = matrix.codes.row(row), *scales = matrix.scales.row(row), *biases = matrix.zeros.row(row);
  each_group<64>(matrix.scales.cols_together, first, first + count, [&](Index group, Index at, auto size) {
    const float scale = number_at<T>(scales, group), bias = number_at<T>(biases, group);
    decode_integers<compiled>(codes, int(matrix.format().bits), at, size, to + (at - first),
                              [&](const kernels::Lanes<float>& q) __attribute__((always_inline)) {
                                const auto scaled = kernels::product_rounded_to<T>(kernels::product(q * scale));
                                return kernels::product_rounded_to<T>(scaled + bias);
                              });
  });
}

}  // namespace detail

/// w = scale · q + bias, each rounded to T. `codes` lie one after the other, low bits first; `scales`, which may be
/// negative, and biases, which are in the place of zeros, are of T.
template <int bits, class T>
inline constexpr NumberFormat affine = {detail::integer_names[bits], detail::numbers_to_a_byte(bits), bits,
                                        detail::decode_affine<detail::compiled_bits(bits), T>};

}  // namespace moe::inline MOE_TARGET
