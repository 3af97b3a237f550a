/// @file  Products of bytes with the instructions of SSE2, AVX2 or AVX-512 without VNNI.
#pragma once

#if defined(__SSE2__)

#include <immintrin.h>

#include "moe/kernels/byte_registers.hpp"
#include "moe/kernels/lanes.hpp"

namespace moe::inline MOE_TARGET::kernels {

inline constexpr bool has_starts = false;

#if defined(__AVX512BW__) || (defined(__AVX2__) && !defined(__AVX512F__))

/// Signs go over to the activations, for the instruction takes unsigned bytes by signed ones, and adds pairs in 16
/// bits: 2 · 128 · 127 fit.
template <bool nonnegative, std::size_t bytes>
struct ByteWeights {
  BytesOf<bytes> codes, sizes;

  MOE_INLINE explicit ByteWeights(const BytesOf<bytes>& w) : codes(w), sizes(w) {
    if constexpr (nonnegative) return;
#if defined(__AVX512BW__)
    if constexpr (bytes == 64) sizes = (BytesOf<bytes>)_mm512_abs_epi8((__m512i)w);
#endif
    if constexpr (bytes == 32) sizes = (BytesOf<bytes>)_mm256_abs_epi8((__m256i)w);
  }
};

template <bool nonnegative, std::size_t bytes>
MOE_INLINE IntegersOf<bytes> byte_products(const ByteWeights<nonnegative, bytes>& w, const BytesOf<bytes>& x,
                                           const IntegersOf<bytes>& start) {
#if defined(__AVX512BW__)
  if constexpr (bytes == 64) {
    auto turned = (__m512i)x;
    if constexpr (!nonnegative) {
      turned = _mm512_mask_sub_epi8(turned, _mm512_movepi8_mask((__m512i)w.codes), _mm512_setzero_si512(), turned);
    }
    const __m512i pairs = _mm512_maddubs_epi16((__m512i)w.sizes, turned);
    return start + (IntegersOf<bytes>)_mm512_madd_epi16(pairs, _mm512_set1_epi16(1));
  }
#endif
  if constexpr (bytes == 32) {
    auto turned = (__m256i)x;
    if constexpr (!nonnegative) turned = _mm256_sign_epi8(turned, (__m256i)w.codes);
    const __m256i pairs = _mm256_maddubs_epi16((__m256i)w.sizes, turned);
    return start + (IntegersOf<bytes>)_mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
  }
}

#else

namespace detail {

/// Bytes at even and odd places as integers of 16 bits, multiplied and added in pairs, 128 bits at a time.
MOE_INLINE __m128i products_of_16(__m128i a, __m128i b) {
  const auto evens = [](__m128i v) { return _mm_srai_epi16(_mm_slli_epi16(v, 8), 8); };
  const auto odds = [](__m128i v) { return _mm_srai_epi16(v, 8); };
  return _mm_add_epi32(_mm_madd_epi16(evens(a), evens(b)), _mm_madd_epi16(odds(a), odds(b)));
}

}  // namespace detail

template <bool nonnegative, std::size_t bytes>
using ByteWeights = SignedByteWeights<nonnegative, bytes>;

template <bool nonnegative, std::size_t bytes>
MOE_INLINE IntegersOf<bytes> byte_products(const ByteWeights<nonnegative, bytes>& w, const BytesOf<bytes>& x,
                                           const IntegersOf<bytes>& start) {
  constexpr int parts = int(bytes / 16);
  __m128i a[parts], b[parts], sums[parts];
  store(a, w.codes);
  store(b, x);
  unroll<parts>([&](auto i) __attribute__((always_inline)) { sums[i] = detail::products_of_16(a[i], b[i]); });
  return start + load_as<IntegersOf<bytes>>(sums);
}

#endif

/// sum + w · x of four bytes each, lane by lane.
template <bool nonnegative>
MOE_INLINE IntegersOf<register_bytes> added_byte_products(const IntegersOf<register_bytes>& sum,
                                                          const BytesOf<register_bytes>& w,
                                                          const BytesOf<register_bytes>& x) {
  return byte_products(ByteWeights<nonnegative, register_bytes>(w), x, sum);
}

}  // namespace moe::inline MOE_TARGET::kernels

#endif
