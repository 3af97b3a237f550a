/// @file  Products of bfloat16 pairs with the instructions of AVX512_BF16.
#pragma once

#if defined(__AVX512BF16__)

#include <immintrin.h>

#include "moe/kernels/lanes.hpp"

namespace moe::inline MOE_TARGET::kernels {

MOE_INLINE void add_pair_products(Lanes<float>& sum, const Pairs& a, const Pairs& b) {
  sum = (Lanes<float>)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
}

MOE_INLINE Pairs rounded_pairs(const Lanes<float>& first, const Lanes<float>& second) {
  return (Pairs)_mm512_cvtne2ps_pbh((__m512)second, (__m512)first);
}

}  // namespace moe::inline MOE_TARGET::kernels

#endif
