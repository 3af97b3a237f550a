/// @file  Rounds floats to what a narrower type holds.
#pragma once

#include <cstdint>
#include <type_traits>

#include "moe/core/types.hpp"
#include "moe/kernels/lanes.hpp"
#include "moe/kernels/multiply_add.hpp"

namespace moe::inline MOE_TARGET::kernels {

namespace detail {

/// Lane by lane a where the mask has all bits, b where it has none.
MOE_INLINE Pairs select(const Pairs& mask, const Pairs& a, const Pairs& b) { return (mask & a) | (~mask & b); }

}  // namespace detail

/// The same numbers as T has them, to nearest even: of float, themselves; infinite where T has no number so large. A
/// NaN stays one.
template <class T>
MOE_INLINE Lanes<float> rounded_to(const Lanes<float>& v) {
  const Pairs bits = (Pairs)v;
  if constexpr (std::is_same_v<T, bfloat16>) {
    const Pairs nearest = (bits + 0x7fffu + ((bits >> 16) & 1u)) & 0xffff0000u;
    return (Lanes<float>)detail::select((Pairs)(v != v), bits | 0x7fc00000u, nearest);
  } else if constexpr (std::is_same_v<T, float16>) {
    const Pairs sign = bits & 0x80000000u, size = bits & 0x7fffffffu;
    const Pairs usual = (size + 0xfffu + ((size >> 13) & 1u)) & 0xffffe000u;
    const Pairs small = (Pairs)(((Lanes<float>)size + 0.75F) - 0.75F);  // a multiple of 2^-24, as float16's subnormals
    Pairs nearest = detail::select((Pairs)(size < 0x38800000u), small, usual);
    nearest = detail::select((Pairs)(nearest >= 0x47800000u), Pairs{} + 0x7f800000u, nearest);
    return (Lanes<float>)(sign | detail::select((Pairs)(size > 0x7f800000u), size | 0x400000u, nearest));
  } else {
    static_assert(std::is_same_v<T, float>);
    return v;
  }
}

/// The same of what is no NaN, or one that a processor makes, or that a narrower type had.
template <class T>
MOE_INLINE Lanes<float> product_rounded_to(const Lanes<float>& v) {
  if constexpr (std::is_same_v<T, bfloat16>) {
    const Pairs bits = (Pairs)v;
    return (Lanes<float>)((bits + 0x7fffu + ((bits >> 16) & 1u)) & 0xffff0000u);
  } else {
    return rounded_to<T>(v);
  }
}

/// Itself, rounded: no compiler fuses the product v with what is then added to it.
MOE_INLINE Lanes<float> product(Lanes<float> v) {
#if defined(__x86_64__) || defined(__i386__)
  if constexpr (is_fused) asm("" : "+x"(v));
#elif defined(__aarch64__)
  if constexpr (is_fused) asm("" : "+w"(v));
#else
  if constexpr (is_fused) asm("" : "+m"(v));
#endif
  return v;
}

}  // namespace moe::inline MOE_TARGET::kernels
