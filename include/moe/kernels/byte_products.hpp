/// @file  Products of bytes, added up exactly in integers of 32 bits.
///
/// Whatever the instruction, the integers are the same: no sum of four products overflows, and none saturates.
#pragma once

#include <cstdint>

#include "moe/core/types.hpp"
#include "moe/kernels/byte_registers.hpp"
#include "moe/kernels/lanes.hpp"

#if defined(__AVX512VNNI__) && defined(__AVX512BW__) && defined(__AVX512VL__)
#include "moe/kernels/x86/byte_products_vnni.hpp"
#elif defined(__AVXVNNI__) && defined(__AVX2__) && !defined(__AVX512F__)
#include "moe/kernels/x86/byte_products_vnni.hpp"
#elif defined(__SSE2__)
#include "moe/kernels/x86/byte_products.hpp"
#elif defined(__aarch64__)
#include "moe/kernels/arm/byte_products.hpp"
#else

namespace moe::inline MOE_TARGET::kernels {

/// Whether a sum of products begins with that of -128 and the activations.
inline constexpr bool has_starts = false;

/// A register of weights, ready to meet activations.
template <bool nonnegative, std::size_t bytes>
using ByteWeights = SignedByteWeights<nonnegative, bytes>;

/// Lane i is start[i] and the sum of w · x over its four bytes; x is -127 to 127. Where has_starts, and w may be
/// negative, start has -128 · the sums of four of x.
template <bool nonnegative, std::size_t bytes>
MOE_INLINE IntegersOf<bytes> byte_products(const ByteWeights<nonnegative, bytes>& w, const BytesOf<bytes>& x,
                                           const IntegersOf<bytes>& start) {
  using Bits = typename detail::VectorOf<std::uint32_t, bytes>::type;
  const auto a = (Bits)w.codes, b = (Bits)x;
  IntegersOf<bytes> sum = start;
  unroll<4>([&](auto i) __attribute__((always_inline)) {
    sum += ((IntegersOf<bytes>)(a << unsigned(8 * i)) >> 24) * ((IntegersOf<bytes>)(b << unsigned(8 * i)) >> 24);
  });
  return sum;
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
