/// @file  Fused multiplication and addition with the instructions of FMA or AVX-512.
#pragma once

#if defined(__AVX512F__) || defined(__FMA__)

#include <immintrin.h>

#include "moe/kernels/lanes.hpp"

namespace moe::inline MOE_TARGET::kernels {

#if defined(__AVX512F__)

MOE_INLINE Lanes<float> multiply_add(const Lanes<float>& a, const Lanes<float>& b, const Lanes<float>& c) {
  return (Lanes<float>)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
}

MOE_INLINE Lanes<double> multiply_add(const Lanes<double>& a, const Lanes<double>& b, const Lanes<double>& c) {
  return (Lanes<double>)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c);
}

#else

MOE_INLINE Lanes<float> multiply_add(const Lanes<float>& a, const Lanes<float>& b, const Lanes<float>& c) {
  return (Lanes<float>)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
}

MOE_INLINE Lanes<double> multiply_add(const Lanes<double>& a, const Lanes<double>& b, const Lanes<double>& c) {
  return (Lanes<double>)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c);
}

#endif

}  // namespace moe::inline MOE_TARGET::kernels

#endif
