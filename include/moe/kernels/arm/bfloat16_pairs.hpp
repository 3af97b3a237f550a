/// @file  Products of bfloat16 pairs with the instructions of NEON.
#pragma once

#if defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)

#include <arm_neon.h>

#include "moe/kernels/lanes.hpp"

namespace moe::inline MOE_TARGET::kernels {

MOE_INLINE void add_pair_products(Lanes<float>& sum, const Pairs& a, const Pairs& b) {
  sum = (Lanes<float>)vbfdotq_f32((float32x4_t)sum, (bfloat16x8_t)a, (bfloat16x8_t)b);
}

MOE_INLINE Pairs rounded_pairs(const Lanes<float>& first, const Lanes<float>& second) {
  return (Pairs)vcvtq_high_bf16_f32(vcvtq_low_bf16_f32((float32x4_t)first), (float32x4_t)second);
}

}  // namespace moe::inline MOE_TARGET::kernels

#endif
