/// @file  Multiplies, then adds, with bits that no compiler decides.
///
/// Left to itself a compiler fuses `a * b + c` in one copy of a loop and not in another, and tokens, tiles and threads
/// then differ in their last bit. So what a promise of bits rests on is said by multiply_add(). Where the processor has
/// a fused instruction, it is that one, rounded once, whatever the compiler and its flags; where it has none (SSE2, AVX
/// without FMA), it is a product, rounded, and a sum, rounded, which nothing there can fuse.
#pragma once

#include "moe/core/types.hpp"
#include "moe/kernels/lanes.hpp"

// g++ says __FP_FAST_FMA wherever it would fuse, but for AVX-512 alone; clang++ does not.
#if defined(__FP_FAST_FMA) || defined(__FMA__) || defined(__AVX512F__) || defined(__FMA4__) || defined(__aarch64__) || \
    defined(__riscv_flen) || defined(__powerpc__) || defined(__s390x__) || defined(__loongarch_frlen)
#define MOE_FUSED 1
#else
#define MOE_FUSED 0
#endif

namespace moe::inline MOE_TARGET::kernels {

/// Whether multiply_add() rounds once, not twice.
inline constexpr bool is_fused = MOE_FUSED;

/// a · b + c, fused where the processor can. Of one number, and lane by lane, with the same bits.
MOE_INLINE float multiply_add(float a, float b, float c) {
#if MOE_FUSED
  return __builtin_fmaf(a, b, c);
#else
  return a * b + c;
#endif
}

MOE_INLINE double multiply_add(double a, double b, double c) {
#if MOE_FUSED
  return __builtin_fma(a, b, c);
#else
  return a * b + c;
#endif
}

}  // namespace moe::inline MOE_TARGET::kernels

#if defined(__AVX512F__) || defined(__FMA__)
#include "moe/kernels/x86/multiply_add.hpp"
#elif defined(__aarch64__)
#include "moe/kernels/arm/multiply_add.hpp"
#else

namespace moe::inline MOE_TARGET::kernels {

namespace detail {

template <class V>
MOE_INLINE V multiply_add_lanes(const V& a, const V& b, const V& c) {
#if MOE_FUSED
  V sum{};
  for (std::size_t i = 0; i < sizeof sum / sizeof sum[0]; ++i) sum[i] = multiply_add(a[i], b[i], c[i]);
  return sum;
#else
  return a * b + c;
#endif
}

}  // namespace detail

MOE_INLINE Lanes<float> multiply_add(const Lanes<float>& a, const Lanes<float>& b, const Lanes<float>& c) {
  return detail::multiply_add_lanes(a, b, c);
}

MOE_INLINE Lanes<double> multiply_add(const Lanes<double>& a, const Lanes<double>& b, const Lanes<double>& c) {
  return detail::multiply_add_lanes(a, b, c);
}

}  // namespace moe::inline MOE_TARGET::kernels

#endif

#undef MOE_FUSED
