/// @file  Registers of bfloat16 pairs, whose products add up in float.
#pragma once

#include "moe/kernels/lanes.hpp"
#include "moe/kernels/multiply_add.hpp"
#include "moe/kernels/shuffle.hpp"

namespace moe::inline MOE_TARGET::kernels {

/// The same bits as floats.
MOE_INLINE Lanes<float> as_floats(const Pairs& bits) { return (Lanes<float>)bits; }

/// Lane i is first[i] and second[i], rounded to the nearest bfloat16 (to even); a NaN stays one.
MOE_INLINE Pairs pairs_of(const Lanes<float>& first, const Lanes<float>& second) {
  const auto rounded = [](const Lanes<float>& v) __attribute__((always_inline)) {
    const Pairs bits = (Pairs)v;
    const Pairs is_nan = (Pairs)(v != v);
    return (is_nan & (bits | 0x400000u)) | (~is_nan & (bits + 0x7fffu + ((bits >> 16) & 1u)));
  };
  return (rounded(first) >> 16) | (rounded(second) & 0xffff0000u);
}

}  // namespace moe::inline MOE_TARGET::kernels

#if defined(__AVX512BF16__)
#include "moe/kernels/x86/bfloat16_pairs.hpp"
#elif defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
#include "moe/kernels/arm/bfloat16_pairs.hpp"
#else

namespace moe::inline MOE_TARGET::kernels {

/// sum[i] += first of a[i] · first of b[i] + second of a[i] · second of b[i].
MOE_INLINE void add_pair_products(Lanes<float>& sum, const Pairs& a, const Pairs& b) {
  sum = multiply_add(as_floats(a << 16), as_floats(b << 16), sum);
  sum = multiply_add(as_floats(a & 0xffff0000u), as_floats(b & 0xffff0000u), sum);
}

/// Two registers of floats, rounded to one of bfloat16, in order. Subnormals may become 0.
MOE_INLINE Pairs rounded_pairs(const Lanes<float>& first, const Lanes<float>& second) {
  return pairs_of(evens<float>(first, second), odds<float>(first, second));
}

}  // namespace moe::inline MOE_TARGET::kernels

#endif

namespace moe::inline MOE_TARGET::kernels {

/// Whether this processor multiplies pairs faster than it multiplies floats.
#if defined(__AVX512BF16__) || defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
inline constexpr bool has_fast_pairs = true;
#else
inline constexpr bool has_fast_pairs = false;
#endif

}  // namespace moe::inline MOE_TARGET::kernels
