/// @file  Widens and looks up codes with the instructions of SSE2, SSSE3, SSE4.1, AVX2 or AVX-512.
#pragma once

#if defined(__SSE2__)

#include <immintrin.h>

#include "moe/formats/codes.hpp"

namespace moe::inline MOE_TARGET::codes {

// g++ 12 takes bytes one by one in __builtin_convertvector.
#if defined(__AVX512F__)

MOE_INLINE Lanes<float> floats_of(const std::int8_t* codes) {
  const __m512i wide = _mm512_maskz_cvtepi8_epi32(0xffff, kernels::load_as<__m128i>(codes));
  return (Lanes<float>)_mm512_maskz_cvtepi32_ps(0xffff, wide);
}

/// A byte in each lane.
MOE_INLINE IntLanes<std::uint32_t> sixteen_codes(const std::byte* bytes) {
  return (IntLanes<std::uint32_t>)_mm512_maskz_cvtepu8_epi32(0xffff, kernels::load_as<__m128i>(bytes));
}

/// Lane i is the number of two tables, one behind the other, at the low five bits of codes[i].
MOE_INLINE Lanes<float> look_up(const Lanes<float>& table, const Lanes<float>& behind,
                                const IntLanes<std::uint32_t>& codes) {
  return (Lanes<float>)_mm512_permutex2var_ps((__m512)table, (__m512i)codes, (__m512)behind);
}

/// The low four bits of each code, above them bit first + i of `bits`.
template <unsigned first>
MOE_INLINE IntLanes<std::uint32_t> with_fifth_bit(const IntLanes<std::uint32_t>& codes, std::uint32_t bits) {
  constexpr auto by = [](unsigned i) { return int((first + i - 4) % 32); };
  const __m512i shifts = _mm512_setr_epi32(by(0), by(1), by(2), by(3), by(4), by(5), by(6), by(7), by(8), by(9), by(10),
                                           by(11), by(12), by(13), by(14), by(15));
  const __m512i turned = _mm512_maskz_rorv_epi32(0xffff, _mm512_set1_epi32(int(bits)), shifts);
  // 15 ? code : turned
  const __m512i all = _mm512_ternarylogic_epi32(_mm512_set1_epi32(15), (__m512i)codes, turned, 0xca);
  return (IntLanes<std::uint32_t>)all;
}

#elif defined(__AVX2__)

MOE_INLINE Lanes<float> floats_of(const std::int8_t* codes) {
  const __m128i some = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(codes));
  return (Lanes<float>)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(some));
}

#else

MOE_INLINE __m128i four_wide(const std::int8_t* codes) {
  const __m128i some = _mm_cvtsi32_si128(kernels::load_as<int>(codes));
#if defined(__SSE4_1__)
  return _mm_cvtepi8_epi32(some);
#else
  const __m128i twice = _mm_unpacklo_epi8(some, some);
  return _mm_srai_epi32(_mm_unpacklo_epi16(twice, twice), 24);
#endif
}

MOE_INLINE Lanes<float> floats_of(const std::int8_t* codes) {
#if defined(__AVX__)
  const __m256i first = _mm256_castsi128_si256(four_wide(codes));
  return (Lanes<float>)_mm256_cvtepi32_ps(_mm256_insertf128_si256(first, four_wide(codes + 4), 1));
#else
  return (Lanes<float>)_mm_cvtepi32_ps(four_wide(codes));
#endif
}

#endif

/// Eight are converted, which is one instruction where one or two would be three.
MOE_INLINE TwoFloats first_halves(const std::byte* block) {
#if defined(__F16C__)
  const __m256 eight = _mm256_cvtph_ps(kernels::load_as<__m128i>(block));
  return {eight[0], eight[1]};
#else
  return {half_at(block), half_at(block + 2)};
#endif
}

MOE_INLINE Bytes<16> look_up(const SixteenValues& values, const Bytes<16>& codes) {
#if defined(__SSSE3__)
  return (Bytes<16>)_mm_shuffle_epi8(kernels::load_as<__m128i>(values.data()), (__m128i)codes);
#else
  Bytes<16> found{};
  for (std::size_t i = 0; i < 16; ++i) found[i] = std::uint8_t(values[codes[i]]);
  return found;
#endif
}

#if defined(__AVX2__)

/// The low halves of 16 bytes, then their high halves.
MOE_INLINE Bytes<32> nibbles(const std::byte* bytes) {
  const __m256i both = _mm256_broadcastsi128_si256(kernels::load_as<__m128i>(bytes));
  return (Bytes<32>)_mm256_srlv_epi64(both, _mm256_setr_epi64x(0, 0, 4, 4)) & 15;
}

/// The 8 scales and 8 minima of Q4_K and Q5_K: ggml_k.hpp. 16 bytes are read.
MOE_INLINE Bytes<16> scales_and_minima(const std::byte* from) {
  const auto bytes = kernels::load_as<__m128i>(from);
  const __m128i low = _mm_shuffle_epi8(bytes, _mm_setr_epi8(0, 1, 2, 3, 8, 9, 10, 11, 4, 5, 6, 7, 8, 9, 10, 11));
  const __m128i high = _mm_shuffle_epi8(bytes, _mm_setr_epi8(-1, -1, -1, -1, 0, 1, 2, 3, -1, -1, -1, -1, 4, 5, 6, 7));
  const __m128i lows = _mm_setr_epi32(0x3f3f3f3f, 0x0f0f0f0f, 0x3f3f3f3f, 0x0f0f0f0f);
  return (Bytes<16>)_mm_or_si128(_mm_and_si128(_mm_srlv_epi32(low, _mm_setr_epi32(0, 0, 0, 4)), lows),
                                 _mm_and_si128(_mm_srli_epi32(high, 2), _mm_set1_epi8(0x30)));
}

MOE_INLINE Bytes<32> look_up(const SixteenValues& values, const Bytes<32>& codes) {
  const __m256i twice = _mm256_broadcastsi128_si256(kernels::load_as<__m128i>(values.data()));
  return (Bytes<32>)_mm256_shuffle_epi8(twice, (__m256i)codes);
}

#endif

#if defined(__AVX512BW__)

MOE_INLINE Bytes<64> look_up(const SixteenValues& values, const Bytes<64>& codes) {
  const __m512i table = _mm512_maskz_broadcast_i32x4(0xffff, kernels::load_as<__m128i>(values.data()));
  return (Bytes<64>)_mm512_shuffle_epi8(table, (__m512i)codes);
}

#endif

}  // namespace moe::inline MOE_TARGET::codes

#endif
