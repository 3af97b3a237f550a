/// @file  Products of bytes with the instructions of NEON, or of its dot products.
#pragma once

#if defined(__aarch64__)

#include <arm_neon.h>

#include "moe/kernels/byte_registers.hpp"
#include "moe/kernels/lanes.hpp"

namespace moe::inline MOE_TARGET::kernels {

inline constexpr bool has_starts = false;

template <bool nonnegative, std::size_t bytes>
using ByteWeights = SignedByteWeights<nonnegative, bytes>;

template <bool nonnegative, std::size_t bytes>
MOE_INLINE IntegersOf<bytes> byte_products(const ByteWeights<nonnegative, bytes>& w, const BytesOf<bytes>& x,
                                           const IntegersOf<bytes>& start) {
  static_assert(bytes == 16);
  const auto a = (int8x16_t)w.codes, b = (int8x16_t)x;
#if defined(__ARM_FEATURE_DOTPROD)
  return (IntegersOf<bytes>)vdotq_s32((int32x4_t)start, a, b);
#else
  const int32x4_t low = vpaddlq_s16(vmull_s8(vget_low_s8(a), vget_low_s8(b)));
  const int32x4_t high = vpaddlq_s16(vmull_high_s8(a, b));
  return start + (IntegersOf<bytes>)vpaddq_s32(low, high);
#endif
}

/// sum + w · x of four bytes each, lane by lane.
template <bool nonnegative>
MOE_INLINE IntegersOf<register_bytes> added_byte_products(const IntegersOf<register_bytes>& sum,
                                                          const BytesOf<register_bytes>& w,
                                                          const BytesOf<register_bytes>& x) {
  return byte_products(ByteWeights<nonnegative, register_bytes>(w), x, sum);
}

}  // namespace moe::inline MOE_TARGET::kernels

#endif
