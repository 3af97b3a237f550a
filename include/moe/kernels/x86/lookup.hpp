/// @file  Looks numbers up with the permutations of AVX2 or AVX-512.
#pragma once

#if defined(__AVX512F__) || defined(__AVX2__)

#include <immintrin.h>

#include <cstdint>

#include "moe/kernels/lanes.hpp"
#include "moe/kernels/sixteen.hpp"

namespace moe::inline MOE_TARGET::kernels {

MOE_INLINE Lanes<float> lookup(const Sixteen& table, const Pairs& index) {
#if defined(__AVX512F__)
  // maskz: g++ 12 warns about the plain form's own undefined register
  return (Lanes<float>)_mm512_maskz_permutexvar_ps(0xffff, (__m512i)index, (__m512)table.part[0]);
#else
  const __m256i lane = (__m256i)index;
  const __m256 low = _mm256_permutevar8x32_ps((__m256)table.part[0], lane);
  const __m256 high = _mm256_permutevar8x32_ps((__m256)table.part[1], lane);
  return (Lanes<float>)_mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_slli_epi32(lane, 28)));
#endif
}

#if defined(__AVX512F__)
namespace detail {

/// A code of four bits in each lane, below anything else: of each byte the low ones first, or the high ones.
template <bool high_first>
MOE_INLINE Pairs sixteen_nibbles(const std::byte* from) {
  const __m512i bytes = _mm512_maskz_cvtepu8_epi64(0xff, _mm_cvtsi64_si128(load_as<long long>(from)));
  if constexpr (high_first) return (Pairs)(bytes >> 4 | bytes << 32);
  return (Pairs)(bytes | bytes << 28);
}

}  // namespace detail
#endif

}  // namespace moe::inline MOE_TARGET::kernels

#endif
