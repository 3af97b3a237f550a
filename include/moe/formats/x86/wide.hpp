/// @file  Takes codes to registers of 64 with the instructions of AVX-512.
#pragma once

#if defined(__AVX512VNNI__) && defined(__AVX512BW__) && defined(__AVX512VL__)

#include <immintrin.h>

#include "moe/formats/codes.hpp"
#include "moe/formats/spread.hpp"

namespace moe::inline MOE_TARGET::codes {

inline constexpr bool has_wide = true;

/// What blocks take their codes apart with, where a register has 64 of them.
struct Wide {
  /// 32 numbers each of 16 bytes at two places: their low halves, then their high ones.
  MOE_INLINE static Bytes<64> nibbles_of_two(const std::byte* first, const std::byte* second) {
    const __m512i once = _mm512_maskz_broadcast_i32x4(0xffff, kernels::load_as<__m128i>(first));
    return halves(_mm512_mask_broadcast_i32x4(once, 0xff00, kernels::load_as<__m128i>(second)), 0, 4, 0, 4);
  }

  /// 64 numbers of 32 bytes: their low halves, then their high ones.
  MOE_INLINE static Bytes<64> nibbles(const std::byte* from) { return halves(twice(from), 0, 0, 4, 4); }

  /// 64 numbers of 32 bytes: the low half of each, then its high one.
  MOE_INLINE static Bytes<64> nibbles_in_turn(const std::byte* from) {
    const __m512i apart = _mm512_maskz_cvtepu8_epi16(0xffffffff, kernels::load_as<__m256i>(from));
    return (Bytes<64>)_mm512_or_si512(apart, _mm512_slli_epi16(apart, 4)) & 15;
  }

  /// The 32 bytes at two places.
  MOE_INLINE static Bytes<64> two(const std::byte* first, const std::byte* second) {
    const __m512i once = _mm512_zextsi256_si512(kernels::load_as<__m256i>(first));
    return (Bytes<64>)_mm512_inserti64x4(once, kernels::load_as<__m256i>(second), 1);
  }

  /// Of 32 bytes the bits of a mask, moved up (or down, where that is negative) by so many for the first 32 numbers,
  /// and by others for the second.
  template <int up, int second_up>
  MOE_INLINE static Bytes<64> bits(const std::byte* from, int mask) {
    static_assert((up >= 0) == (second_up >= 0) || up == 0 || second_up == 0);
    const __m512i bytes = twice(from);
    __m512i moved;
    if constexpr (up > 0 || second_up > 0) {
      moved = _mm512_maskz_sllv_epi64(0xff, bytes, first_and_second(up, second_up));
    } else {
      moved = _mm512_maskz_srlv_epi64(0xff, bytes, first_and_second(-up, -second_up));
    }
    return (Bytes<64>)moved & std::uint8_t(mask);
  }

  /// Lane i is values[codes[i]]; codes are below 16.
  MOE_INLINE static Bytes<64> look_up(const SixteenValues& values, const Bytes<64>& codes) {
    return codes::look_up(values, codes);
  }

  /// The float16 at two places, each in half of the lanes.
  MOE_INLINE static Lanes<float> two_halves(const std::byte* first, const std::byte* second) {
    const __m256i once = _mm256_set1_epi16(kernels::load_as<std::int16_t>(first));
    const __m256i both = _mm256_mask_set1_epi16(once, 0xff00, kernels::load_as<std::int16_t>(second));
    return (Lanes<float>)_mm512_maskz_cvtph_ps(0xffff, both);
  }

  /// Four float16 that are `apart` bytes apart, then zeros.
  MOE_INLINE static Lanes<float> four_halves(const std::byte* first, Index apart) {
    const auto half = [&](Index i) { return kernels::load_as<std::int16_t>(first + i * apart); };
    __m128i four = _mm_cvtsi32_si128(std::uint16_t(half(0)));
    four = _mm_insert_epi16(four, half(1), 1);
    four = _mm_insert_epi16(four, half(2), 2);
    four = _mm_insert_epi16(four, half(3), 3);
    return (Lanes<float>)_mm512_maskz_cvtph_ps(0xffff, _mm256_zextsi128_si256(four));
  }

  /// half_e8m0() of two bytes, each in half of the lanes.
  MOE_INLINE static Lanes<float> two_e8m0(std::byte first, std::byte second) {
    const __m512i code = _mm512_mask_set1_epi32(_mm512_set1_epi32(int(first)), 0xff00, int(second));
    const __m512i normal = _mm512_slli_epi32(_mm512_sub_epi32(code, _mm512_set1_epi32(1)), 23);
    const __mmask16 is_small = _mm512_cmplt_epu32_mask(code, _mm512_set1_epi32(2));
    return (Lanes<float>)_mm512_mask_sllv_epi32(normal, is_small, _mm512_set1_epi32(0x200000), code);
  }

  /// Each of 64 codes with bit 4 set where that bit of four bytes at two places is.
  MOE_INLINE static Bytes<64> with_fifth_bits(const Bytes<64>& codes, const std::byte* first, const std::byte* second) {
    const auto low = kernels::load_as<std::uint32_t>(first), high = kernels::load_as<std::uint32_t>(second);
    const auto bits = (__mmask64)(low | std::uint64_t(high) << 32);
    return codes | (Bytes<64>)_mm512_maskz_set1_epi8(bits, 16);
  }

  /// Lanes 8 to 15, then zeros.
  MOE_INLINE static Lanes<float> upper_half(const Lanes<float>& all) {
    return (Lanes<float>)_mm512_maskz_shuffle_i64x2(0x0f, (__m512i)all, (__m512i)all, 0xee);
  }

 private:
  MOE_INLINE static __m512i twice(const std::byte* from) {
    return _mm512_maskz_broadcast_i64x4(0xff, kernels::load_as<__m256i>(from));
  }

  MOE_INLINE static __m512i first_and_second(int a, int b) { return _mm512_setr_epi64(a, a, a, a, b, b, b, b); }

  /// Each 16 bytes moved down by so many bits, of which four stay.
  MOE_INLINE static Bytes<64> halves(const __m512i& bytes, int a, int b, int c, int d) {
    const __m512i down = _mm512_setr_epi64(a, a, b, b, c, c, d, d);
    return (Bytes<64>)_mm512_maskz_srlv_epi64(0xff, bytes, down) & 15;
  }
};

}  // namespace moe::inline MOE_TARGET::codes

#endif
