/// @file  Activations as codes of 8 bits.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstring>
#include <limits>

#include "moe/core/types.hpp"
#include "moe/kernels/byte_products.hpp"
#include "moe/kernels/bytes.hpp"
#include "moe/kernels/lanes.hpp"
#include "moe/kernels/multiply_add.hpp"
#include "moe/kernels/transpose.hpp"

namespace moe::inline MOE_TARGET::kernels {

/// 64 neighbours of a token: x = scale · code, where 32 share a scale, the largest |x| ÷ 127. Where one of these is NaN
/// or infinite, their scale is NaN.
struct alignas(64) ActivationCodes {
  static constexpr Index size = 64;

  std::int8_t codes[64];
  float scales[16];         // of each four codes
  float sums[16];           // Σ x as coded, of 16 neighbours each, then of 32 each
  std::int32_t starts[16];  // of each four codes, -128 · their sum
};

namespace detail {

/// Lane by lane the larger of two numbers, as integers.
MOE_INLINE Pairs larger(const Pairs& a, const Pairs& b) {
  using Signed = IntLanes<std::int32_t>;
  const auto mask = (Pairs)((Signed)a > (Signed)b);
  return (a & mask) | (b & ~mask);
}

/// The largest lane of them.
template <int size = lanes<float> / 2>
MOE_INLINE std::uint32_t largest_lane(const Pairs& v) {
  if constexpr (size == 0) {
    return v[0];
  } else {
    return largest_lane<size / 2>(larger(v, (Pairs)swapped_blocks<float, size>((Lanes<float>)v)));
  }
}

/// The codes of 32 neighbours, and their scale.
MOE_INLINE float code_32(const float* x, std::int8_t* codes) {
  constexpr int L = lanes<float>, registers = 32 / L;
  Lanes<float> numbers[registers];
  Pairs sizes{};  // as integers NaN and infinity are larger than any number
  unroll<registers>([&](auto i) __attribute__((always_inline)) {
    numbers[i] = load_as<Lanes<float>>(x + i * L);
    sizes = larger(sizes, (Pairs)numbers[i] & 0x7fffffffU);
  });
  const std::uint32_t largest = largest_lane(sizes);
  if (largest == 0 || largest >= 0x7f800000U) {
    std::memset(codes, 0, 32);
    return largest == 0 ? 0.F : std::numeric_limits<float>::quiet_NaN();
  }
  // 127 ÷ a small number would be infinite.
  const float lift = largest < 0x10000000U ? 0x1p96F : 1.F, size = std::bit_cast<float>(largest);
  const Lanes<float> inverse = 127 / (size * lift) - Lanes<float>{};
  const Lanes<float> nearest = 0x1.8p23F - Lanes<float>{};  // behind this sum an integer lies in the lowest bits
  unroll<registers>([&](auto i) __attribute__((always_inline)) {
    const auto sums = (IntLanes<std::int32_t>)multiply_add(numbers[i] * lift, inverse, nearest);
    store_low_bytes(sums, codes + i * L);
  });
  return size / 127;
}

}  // namespace detail

/// The codes of x[0, 64).
MOE_INLINE void code_activations(const float* x, ActivationCodes& to) {
  float scales[2];
  for (int half = 0; half < 2; ++half) {
    scales[half] = detail::code_32(x + 32 * half, to.codes + 32 * half);
    std::fill_n(to.scales + 8 * half, 8, scales[half]);
  }
  const ByteWeights<true, register_bytes> ones(BytesOf<register_bytes>{} + std::int8_t(1));
  std::int32_t fours[16];
  repeat<int(64 / register_bytes)>([&](int i) __attribute__((always_inline)) {
    const auto codes = load_as<BytesOf<register_bytes>>(to.codes + i * int(register_bytes));
    const auto sums = byte_products(ones, codes, IntegersOf<register_bytes>{});
    store(fours + i * lanes<float>, sums);
    store(to.starts + i * lanes<float>, sums * -128);
  });
  asm("" : "+m"(fours));  // lanes that are taken out of registers cost more than loads
  std::int32_t sums[4];
  for (int i = 0; i < 4; ++i) sums[i] = (fours[4 * i] + fours[4 * i + 1]) + (fours[4 * i + 2] + fours[4 * i + 3]);
  for (int i = 0; i < 4; ++i) to.sums[i] = scales[i / 2] * float(sums[i]);
  for (int i = 0; i < 2; ++i) to.sums[4 + i] = scales[i] * float(sums[2 * i] + sums[2 * i + 1]);
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
MOE_INLINE void put_in_lane(const ActivationCodes& codes, Index lane, bool is_last, ManyActivationCodes& to) {
  constexpr Index L = ManyActivationCodes::L;
  for (int i = 0; i < 16; ++i) std::memcpy(to.codes[i][lane], codes.codes + 4 * i, 4);
  const Index end = is_last ? L : lane + 1;
  do {
    for (int half = 0; half < 2; ++half) to.scales[half][lane] = codes.scales[8 * half];
    for (int i = 0; i < 6; ++i) to.sums[i][lane] = codes.sums[i];
    if constexpr (has_starts) {
      for (int i = 0; i < 4; ++i) {
        const std::int32_t* const four = codes.starts + 4 * i;
        to.starts[i][lane] = (four[0] + four[1]) + (four[2] + four[3]);
      }
      for (int i = 0; i < 2; ++i) to.starts[4 + i][lane] = to.starts[2 * i][lane] + to.starts[2 * i + 1][lane];
    }
  } while (++lane < end);
}

}  // namespace moe::inline MOE_TARGET::kernels
