/// @file  The square root of doubles, correctly rounded in every lane.
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

MOE_INLINE Lanes<double> square_root(const Lanes<double>& x) {
#if defined(__AVX512F__)
  return (Lanes<double>)_mm512_sqrt_pd((__m512d)x);
#elif defined(__AVX__)
  return (Lanes<double>)_mm256_sqrt_pd((__m256d)x);
#elif defined(__SSE2__)
  return (Lanes<double>)_mm_sqrt_pd((__m128d)x);
#elif defined(__aarch64__)
  return (Lanes<double>)vsqrtq_f64((float64x2_t)x);
#else
  Lanes<double> root{};
  for (std::size_t i = 0; i < std::size_t(lanes<double>); ++i) root[i] = std::sqrt(x[i]);
  return root;
#endif
}

}  // namespace moe::inline MOE_TARGET::kernels
