/// @file  Activations as codes of 8 bits.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstring>
#include <limits>

#include "moe/core/types.hpp"
#include "moe/kernels/byte_products.hpp"
#include "moe/kernels/lanes.hpp"
#include "moe/kernels/multiply_add.hpp"

namespace moe::inline MOE_TARGET::kernels {

/// 64 neighbours of a token: x = scale · code, where 32 share a scale, the largest |x| ÷ 127. Where one of these is NaN
/// or infinite, their scale is NaN.
struct alignas(64) ActivationCodes {
  static constexpr Index size = 64;

  std::int8_t codes[64];
  float scales[16];         // of each four codes
  float sums[16];           // Σ x as coded, of 16 neighbours each, then of 32 each, then zeros
  std::int32_t starts[16];  // of each four codes, -128 · their sum; written where has_starts
};

namespace detail {

/// The codes of 32 neighbours, and their scale.
MOE_INLINE float code_32(const float* x, std::int8_t* codes) {
  std::uint32_t largest = 0;  // NaN and infinity are larger than any number, as integers
  for (int i = 0; i < 32; ++i) largest = std::max(largest, std::bit_cast<std::uint32_t>(x[i]) & 0x7fffffffU);
  if (largest == 0 || largest >= 0x7f800000U) {
    std::fill_n(codes, 32, std::int8_t(0));
    return largest == 0 ? 0.F : std::numeric_limits<float>::quiet_NaN();
  }
  // 127 ÷ a small number would be infinite.
  const float lift = largest < 0x10000000U ? 0x1p96F : 1.F, size = std::bit_cast<float>(largest);
  const float inverse = 127 / (size * lift);
  constexpr float nearest = 0x1.8p23F;  // behind this sum an integer lies in the lowest bits
  for (int i = 0; i < 32; ++i) {
    const float sum = multiply_add(x[i] * lift, inverse, nearest);
    codes[i] = std::int8_t(std::uint8_t(std::bit_cast<std::uint32_t>(sum)));
  }
  return size / 127;
}

}  // namespace detail

/// The codes of x[0, 64).
inline void code_activations(const float* x, ActivationCodes& to) {
  for (int half = 0; half < 2; ++half) {
    const float scale = detail::code_32(x + 32 * half, to.codes + 32 * half);
    std::fill_n(to.scales + 8 * half, 8, scale);
    std::int32_t sums[2] = {};
    for (int i = 0; i < 32; ++i) sums[i / 16] += to.codes[32 * half + i];
    for (int h = 0; h < 2; ++h) to.sums[2 * half + h] = scale * float(sums[h]);
    to.sums[4 + half] = scale * float(sums[0] + sums[1]);
  }
  std::fill(to.sums + 6, to.sums + 16, 0.F);
  if constexpr (has_starts) {
    for (int i = 0; i < 16; ++i) {
      const std::int8_t* const four = to.codes + 4 * i;
      to.starts[i] = -128 * (four[0] + four[1] + four[2] + four[3]);
    }
  }
}

/// The same of as many tokens as a register has lanes, side by side.
struct alignas(64) ManyActivationCodes {
  static constexpr int L = lanes<float>;

  std::int8_t codes[16][L][4];
  float scales[2][L];         // of 32 neighbours each
  float sums[6][L];           // Σ x as coded, of 16 neighbours each, then of 32 each
  std::int32_t starts[6][L];  // -128 · the sums of so many codes; written where has_starts
};

/// Writes what a token has, in lane `lane`; if it is the last one, in those behind as well, so that nothing there is
/// anything else than a number.
inline void put_in_lane(const ActivationCodes& codes, int lane, bool is_last, ManyActivationCodes& to) {
  constexpr int L = ManyActivationCodes::L;
  for (int i = 0; i < 16; ++i) std::memcpy(to.codes[i][lane], codes.codes + 4 * i, 4);
  const int end = is_last ? L : lane + 1;
  for (int half = 0; half < 2; ++half) std::fill(to.scales[half] + lane, to.scales[half] + end, codes.scales[8 * half]);
  for (int i = 0; i < 6; ++i) std::fill(to.sums[i] + lane, to.sums[i] + end, codes.sums[i]);
  if constexpr (has_starts) {
    for (int i = 0; i < 4; ++i) {
      const std::int32_t* const four = codes.starts + 4 * i;
      to.starts[i][lane] = four[0] + four[1] + four[2] + four[3];
    }
    for (int i = 0; i < 2; ++i) to.starts[4 + i][lane] = to.starts[2 * i][lane] + to.starts[2 * i + 1][lane];
  }
}

}  // namespace moe::inline MOE_TARGET::kernels
