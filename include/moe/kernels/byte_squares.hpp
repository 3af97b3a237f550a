/// @file  Products of squares of bytes, two rows by two columns, added up exactly in integers of 32 bits.
#pragma once

#include <cstdint>

#include "moe/kernels/byte_registers.hpp"
#include "moe/kernels/lanes.hpp"

#if defined(__ARM_FEATURE_MATMUL_INT8) && defined(__ARM_FEATURE_DOTPROD) && \
    defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
#include "moe/kernels/arm/byte_squares.hpp"
#else

namespace moe::inline MOE_TARGET::kernels {

/// Whether this processor has an instruction for them.
inline constexpr bool has_byte_squares = false;

/// sum + w · x: in 16 bytes of w two rows of eight, of x two columns, of the sum their four products, row by row.
MOE_INLINE IntegersOf<16> added_byte_squares(const IntegersOf<16>& sum, const BytesOf<16>& w, const BytesOf<16>& x) {
  IntegersOf<16> all = sum;
  for (int i = 0; i < 4; ++i) {
    for (int k = 0; k < 8; ++k) all[i] += std::int32_t(w[i / 2 * 8 + k]) * x[i % 2 * 8 + k];
  }
  return all;
}

}  // namespace moe::inline MOE_TARGET::kernels

#endif
