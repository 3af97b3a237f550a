/// @file  Products of bytes with the instructions of AVX512_VNNI or AVX_VNNI.
///
/// They multiply unsigned bytes by signed ones. So weights that may be negative have 128 added, and their sums begin
/// with -128 times the activations.
#pragma once

#if (defined(__AVX512VNNI__) && defined(__AVX512VL__)) || defined(__AVXVNNI__)

#include <immintrin.h>

#include "moe/kernels/byte_registers.hpp"
#include "moe/kernels/lanes.hpp"

namespace moe::inline MOE_TARGET::kernels {

inline constexpr bool has_starts = true;

namespace detail {

/// sum + the products of unsigned a and signed b.
template <std::size_t bytes>
MOE_INLINE IntegersOf<bytes> added_products(const IntegersOf<bytes>& sum, const BytesOf<bytes>& a,
                                            const BytesOf<bytes>& b) {
#if defined(__AVX512VNNI__)
  if constexpr (bytes == 64) {
    return (IntegersOf<bytes>)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)a, (__m512i)b);
  } else {
    return (IntegersOf<bytes>)_mm256_dpbusd_epi32((__m256i)sum, (__m256i)a, (__m256i)b);
  }
#else
  return (IntegersOf<bytes>)_mm256_dpbusd_avx_epi32((__m256i)sum, (__m256i)a, (__m256i)b);
#endif
}

}  // namespace detail

template <bool nonnegative, std::size_t bytes>
struct ByteWeights {
  BytesOf<bytes> codes;

  MOE_INLINE explicit ByteWeights(const BytesOf<bytes>& w) : codes(nonnegative ? w : w ^ std::int8_t(-128)) {}
};

template <bool nonnegative, std::size_t bytes>
MOE_INLINE IntegersOf<bytes> byte_products(const ByteWeights<nonnegative, bytes>& w, const BytesOf<bytes>& x,
                                           const IntegersOf<bytes>& start) {
  return detail::added_products<bytes>(start, w.codes, x);
}

/// sum + w · x of four bytes each, lane by lane; w has 128 added if it may be negative.
template <bool nonnegative>
MOE_INLINE IntegersOf<register_bytes> added_byte_products(const IntegersOf<register_bytes>& sum,
                                                          const BytesOf<register_bytes>& w,
                                                          const BytesOf<register_bytes>& x) {
  return detail::added_products<register_bytes>(sum, w, x);
}

}  // namespace moe::inline MOE_TARGET::kernels

#endif
