/// @file  The square root, correctly rounded in every lane.
///
/// Eigen 3.4 has it from the processor's estimate in registers (√∞ is then NaN), and std::sqrt's of the numbers left
/// over.
#pragma once

#include <cmath>
#include <cstddef>

#include "moe/core/types.hpp"
#include "moe/kernels/lanes.hpp"

#if defined(__SSE2__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace moe::inline MOE_TARGET::kernels {

namespace detail {

template <class V>
MOE_INLINE V square_root_of_each(const V& x) {
  V root{};
  for (std::size_t i = 0; i < sizeof x / sizeof x[0]; ++i) root[i] = std::sqrt(x[i]);
  return root;
}

}  // namespace detail

MOE_INLINE Lanes<float> square_root(const Lanes<float>& x) {
#if defined(__AVX512F__)
  // maskz: g++ 12 warns about the plain form's own undefined register
  return (Lanes<float>)_mm512_maskz_sqrt_ps(0xFFFF, (__m512)x);
#elif defined(__AVX__)
  return (Lanes<float>)_mm256_sqrt_ps((__m256)x);
#elif defined(__SSE2__)
  return (Lanes<float>)_mm_sqrt_ps((__m128)x);
#elif defined(__aarch64__)
  return (Lanes<float>)vsqrtq_f32((float32x4_t)x);
#else
  return detail::square_root_of_each(x);
#endif
}

MOE_INLINE Lanes<double> square_root(const Lanes<double>& x) {
#if defined(__AVX512F__)
  return (Lanes<double>)_mm512_maskz_sqrt_pd(0xFF, (__m512d)x);
#elif defined(__AVX__)
  return (Lanes<double>)_mm256_sqrt_pd((__m256d)x);
#elif defined(__SSE2__)
  return (Lanes<double>)_mm_sqrt_pd((__m128d)x);
#elif defined(__aarch64__)
  return (Lanes<double>)vsqrtq_f64((float64x2_t)x);
#else
  return detail::square_root_of_each(x);
#endif
}

}  // namespace moe::inline MOE_TARGET::kernels
