/// @file  Widens and narrows bytes with the instructions of AVX2 or AVX-512.
#pragma once

#if defined(__AVX512BW__) || (defined(__AVX2__) && !defined(__AVX512F__))

#include <immintrin.h>

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "moe/kernels/lanes.hpp"

namespace moe::inline MOE_TARGET::kernels {

MOE_INLINE Lanes<std::int16_t> halves_of(const std::byte* from) {
#if defined(__AVX512BW__)
  return (Lanes<std::int16_t>)_mm512_cvtepi8_epi16(load_as<__m256i>(from));
#else
  return (Lanes<std::int16_t>)_mm256_cvtepi8_epi16(load_as<__m128i>(from));
#endif
}

template <class Byte>
MOE_INLINE IntLanes<std::int32_t> integers_of(const std::byte* from) {
#if defined(__AVX512BW__)
  // maskz: g++ 12 warns about the plain form's own undefined register
  const auto bytes = load_as<__m128i>(from);
  return (IntLanes<std::int32_t>)(std::is_signed_v<Byte> ? _mm512_maskz_cvtepi8_epi32(0xffff, bytes)
                                                         : _mm512_maskz_cvtepu8_epi32(0xffff, bytes));
#else
  const auto bytes = load_as<std::int64_t>(from);
  const __m128i low = _mm_cvtsi64_si128(bytes);
  return (IntLanes<std::int32_t>)(std::is_signed_v<Byte> ? _mm256_cvtepi8_epi32(low) : _mm256_cvtepu8_epi32(low));
#endif
}

MOE_INLINE void store_low_bytes(const IntLanes<std::int32_t>& v, std::int8_t* to) {
#if defined(__AVX512BW__)
  store(to, _mm512_maskz_cvtepi32_epi8(0xffff, (__m512i)v));
#else
  const __m256i firsts = _mm256_setr_epi8(0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1,
                                          0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1);
  const __m256i four = _mm256_shuffle_epi8((__m256i)v, firsts);
  const __m128i both = _mm_or_si128(_mm256_castsi256_si128(four), _mm256_extracti128_si256(four, 1));
  store(to, _mm_cvtsi128_si64(both));
#endif
}

}  // namespace moe::inline MOE_TARGET::kernels

#endif
