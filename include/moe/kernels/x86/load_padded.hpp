/// @file  A part of a register by the masks of AVX2 or AVX-512.
#pragma once

#if defined(__AVX512F__) || (defined(__AVX2__) && defined(__FMA__) && defined(__F16C__))  // "avx2" of target.hpp

#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "moe/core/types.hpp"
#include "moe/kernels/lanes.hpp"

namespace moe::inline MOE_TARGET::kernels {

/// The first `size` numbers at `from`, and zeros: where size ≤ 0 nothing but these. Nothing behind is read.
template <class V, class T>
MOE_INLINE V load_padded(const T* from, Index size) {
  static_assert(sizeof(V) == register_bytes);
  const Index bytes = std::clamp<Index>(size * Index(sizeof(T)), 0, sizeof(V));
#if defined(__AVX512BW__)
  return (V)_mm512_maskz_loadu_epi8(bytes == 64 ? ~std::uint64_t(0) : (std::uint64_t(1) << bytes) - 1, from);
#elif defined(__AVX512F__)
  const __m512i words = _mm512_maskz_loadu_epi32(__mmask16((1U << (bytes / 4)) - 1), from);
  if (sizeof(T) >= 4 || bytes % 4 == 0) return (V)words;
  V v = (V)words;
  std::memcpy(reinterpret_cast<char*>(&v) + bytes / 4 * 4, from + size - 1, sizeof(T));
  return v;
#else
  const __m256i place = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), end = _mm256_set1_epi32(int(bytes / 4));
  const __m256i words = _mm256_maskload_epi32(reinterpret_cast<const int*>(from), _mm256_cmpgt_epi32(end, place));
  if (sizeof(T) >= 4 || bytes % 4 == 0) return (V)words;
  V v = (V)words;
  std::memcpy(reinterpret_cast<char*>(&v) + bytes / 4 * 4, from + size - 1, sizeof(T));
  return v;
#endif
}

/// to[0, size) = the first lanes of v, fewer than all. Nothing behind is written.
template <class V, class T>
MOE_INLINE void store_part(T* to, const V& v, Index size) {
  static_assert(sizeof(V) == register_bytes && sizeof(T) >= 4);
  const Index words = size * Index(sizeof(T)) / 4;
#if defined(__AVX512F__)
  _mm512_mask_storeu_epi32(to, __mmask16((1U << words) - 1), (__m512i)v);
#else
  const __m256i place = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), end = _mm256_set1_epi32(int(words));
  _mm256_maskstore_epi32(reinterpret_cast<int*>(to), _mm256_cmpgt_epi32(end, place), (__m256i)v);
#endif
}

}  // namespace moe::inline MOE_TARGET::kernels

#endif
