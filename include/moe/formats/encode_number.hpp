/// @file  Numbers of 16, 8 and 4 bits, rounded as each format's own software rounds them.
///
/// Bits of an encoder depend on no compiler: a product that is added to is rounded_here() first, so that nothing fuses
/// the two, and what is rounded to few bits is rounded as integers.
#pragma once

#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "moe/core/types.hpp"

namespace moe::inline MOE_TARGET::encoding {

/// What was computed into these numbers is rounded, and no compiler knows of it what it was.
template <class T>
inline __attribute__((always_inline)) void rounded_here(T& numbers) {
  __asm__("" : "+m"(numbers));
}

/// a · b, rounded whatever it is added to.
template <class S>
S product(S a, std::type_identity_t<S> b) {
  S of_both = a * b;
#if defined(__SSE2__)
  __asm__("" : "+x"(of_both));
#elif defined(__aarch64__)
  __asm__("" : "+w"(of_both));
#else
  rounded_here(of_both);
#endif
  return of_both;
}

/// To the nearest whole number, halves away from zero (C's roundf); |x| < 2^22.
inline int round_away(float x) {
  const float magnitude = std::fabs(x);
  const int floor = int(magnitude);
  const int nearest = floor + (magnitude - float(floor) >= 0.5F ? 1 : 0);
  return x < 0 ? -nearest : nearest;
}

/// To the nearest whole number, halves to the even one; |x| < 2^22.
inline int round_to_even(float x) {
  const float magnitude = std::fabs(x);
  const int floor = int(magnitude);
  const float rest = magnitude - float(floor);
  const int nearest = floor + (rest > 0.5F || (rest == 0.5F && floor % 2 != 0) ? 1 : 0);
  return x < 0 ? -nearest : nearest;
}

/// IEEE binary16, to nearest, ties to even; too large is infinite; a NaN is quiet.
inline std::uint16_t to_half(float x) {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(x), magnitude = bits & 0x7fffffffU;
  const std::uint32_t sign = (bits >> 16) & 0x8000U;
  if (magnitude > 0x7f800000U) return std::uint16_t(sign | 0x7e00U);
  if (magnitude >= 0x477ff000U) return std::uint16_t(sign | 0x7c00U);  // 65520 and more
  if (magnitude >= 0x38800000U) {                                      // normal: 2^-14 and more
    const std::uint32_t rounded = magnitude + 0xfffU + ((magnitude >> 13) & 1U);
    return std::uint16_t(sign | ((rounded - 0x38000000U) >> 13));
  }
  // Of steps of 2^-24; 2^-1 has such a step as float.
  const float in_steps = std::bit_cast<float>(magnitude) + 0.5F;
  return std::uint16_t(sign | (std::bit_cast<std::uint32_t>(in_steps) - 0x3f000000U));
}

/// The number of binary16 that these bits are, exactly.
inline float from_half(std::uint16_t half) {
  const std::uint32_t sign = std::uint32_t(half & 0x8000U) << 16, magnitude = half & 0x7fffU;
  if (magnitude >= 0x7c00U) return std::bit_cast<float>(sign | 0x7f800000U | (magnitude & 0x3ffU) << 13);
  if (magnitude >= 0x400U) return std::bit_cast<float>(sign | ((magnitude << 13) + 0x38000000U));
  const float number = float(magnitude) * 0x1p-24F;
  return sign != 0 ? -number : number;
}

/// To nearest, ties to even; a NaN is quiet.
inline std::uint16_t to_bfloat16(float x) {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(x);
  if ((bits & 0x7fffffffU) > 0x7f800000U) return std::uint16_t((bits >> 16) | 0x40U);
  return std::uint16_t((bits + 0x7fffU + ((bits >> 16) & 1U)) >> 16);
}

/// 1 / x; of what is too small for that, and of a zero: 0, so that all codes are those of zero.
inline float reciprocal(float x) { return std::isfinite(1 / x) ? 1 / x : 0; }

/// x as binary16, rounded to nearest, low byte first.
inline void write_half(std::byte* to, float x) {
  const std::uint16_t half = to_half(x);
  to[0] = std::byte(half & 0xffU);  // low byte first, whatever the processor
  to[1] = std::byte(half >> 8);
}

/// The number of bfloat16 that these bits are, exactly.
inline float from_bfloat16(std::uint16_t bits) { return std::bit_cast<float>(std::uint32_t(bits) << 16); }

/// E4M3 without infinities, to nearest, ties to even; beyond ±448, that; a NaN is 0x7f. OCP 8-bit Floating Point
/// Specification 1.0.
inline std::uint8_t to_e4m3(float x) {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(x), magnitude = bits & 0x7fffffffU;
  const std::uint32_t sign = (bits >> 24) & 0x80U;
  if (magnitude > 0x7f800000U) return 0x7fU;
  if (magnitude >= 0x43e00000U) return std::uint8_t(sign | 0x7eU);  // 448
  if (magnitude >= 0x3c800000U) {                                   // normal: 2^-6 and more
    const std::uint32_t rounded = magnitude + 0x7ffffU + ((magnitude >> 20) & 1U);
    return std::uint8_t(sign | ((rounded - 0x3c000000U) >> 20));
  }
  // Of steps of 2^-9; 2^14 has such a step as float.
  const float in_steps = std::bit_cast<float>(magnitude) + 0x1p14F;
  return std::uint8_t(sign | (std::bit_cast<std::uint32_t>(in_steps) - std::bit_cast<std::uint32_t>(0x1p14F)));
}

/// The number that bits of E4M3 stand for; 0x7f and 0xff are 480 here, which nobody writes.
inline float from_e4m3(std::uint8_t code) {
  const std::uint32_t magnitude = code & 0x7fU;
  const float number = magnitude < 8 ? float(magnitude) * 0x1p-9F  //
                                     : std::bit_cast<float>((magnitude << 20) + 0x3c000000U);
  return (code & 0x80U) != 0 ? -number : number;
}

/// E2M1 of ±0, 0.5, 1, 1.5, 2, 3, 4, 6: to nearest, ties to even codes; beyond ±6, that. -0 is 0, and what is rounded
/// to zero keeps its sign (compressed-tensors).
inline std::uint8_t to_e2m1(float x) {
  const float magnitude = std::fabs(x);
  const int code = int(magnitude > 0.25F) + int(magnitude >= 0.75F) + int(magnitude > 1.25F) + int(magnitude >= 1.75F) +
                   int(magnitude > 2.5F) + int(magnitude >= 3.5F) + int(magnitude > 5);
  return std::uint8_t(code | (x < 0 ? 8 : 0));
}

/// 2^(code − 127), of any code: 0 is 2^-127, 255 is 2^128, which is infinite in float.
inline float power_of_two(int code) { return code == 0 ? 0x1p-127F : std::bit_cast<float>(std::uint32_t(code) << 23); }

}  // namespace moe::inline MOE_TARGET::encoding
