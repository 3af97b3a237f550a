/// @file  Products of squares of bytes with the instruction of NEON's i8mm.
#pragma once

#if defined(__ARM_FEATURE_MATMUL_INT8)

#include <arm_neon.h>

#include "moe/kernels/byte_registers.hpp"
#include "moe/kernels/lanes.hpp"

namespace moe::inline MOE_TARGET::kernels {

inline constexpr bool has_byte_squares = true;

MOE_INLINE IntegersOf<16> added_byte_squares(const IntegersOf<16>& sum, const BytesOf<16>& w, const BytesOf<16>& x) {
  return (IntegersOf<16>)vmmlaq_s32((int32x4_t)sum, (int8x16_t)w, (int8x16_t)x);
}

}  // namespace moe::inline MOE_TARGET::kernels

#endif
