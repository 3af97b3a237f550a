/// @file  Widens float16 with the instructions of F16C or AVX-512.
#pragma once

#if defined(__F16C__) || defined(__AVX512F__)

#include <immintrin.h>

#include "moe/kernels/lanes.hpp"

namespace moe::inline MOE_TARGET::kernels {

MOE_INLINE Lanes<float> widen(const float16* from) {
#if defined(__AVX512F__)
  // maskz: g++ 12 warns about the plain form's own undefined register
  return (Lanes<float>)_mm512_maskz_cvtph_ps(0xffff, load_as<__m256i>(from));
#else
  return (Lanes<float>)_mm256_cvtph_ps(load_as<__m128i>(from));
#endif
}

}  // namespace moe::inline MOE_TARGET::kernels

#endif
