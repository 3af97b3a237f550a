/// @file  GGUF's types of one or two bits around one scale.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "moe/core/quantized.hpp"
#include "moe/formats/codes.hpp"

namespace moe::inline MOE_TARGET {

/// d or −d
struct Q1_0 {
  static constexpr const char* name = "Q1_0";
  static constexpr Index numbers = 128, bytes = 18;

  MOE_INLINE static void decode(const std::byte* block, float* to) {
    const auto d = codes::all(codes::first_halves(block).first);
    codes::Codes<128> its_codes;
    constexpr int width = std::min(32, int(kernels::register_bytes));
    kernels::repeat<128 / width>([&](int i) __attribute__((always_inline)) {
      const auto bits = codes::bytes_of_bits<width>(block + 2 + i * width / 8);
      kernels::store(its_codes.at + i * width, (bits & 2) - 1);
    });
    codes::keep_in_memory(its_codes);
    codes::spread<128>(its_codes.at, to, [&](const auto& x) { return d * x; });
  }
};

/// d · (code − 1), four codes in a byte, the first in its low bits
struct Q2_0 {
  static constexpr const char* name = "Q2_0";
  static constexpr Index numbers = 64, bytes = 18;

  MOE_INLINE static void decode(const std::byte* block, float* to) {
    const float d = codes::first_halves(block).first;
    for (int i = 0; i < 64; ++i) to[i] = d * float(int(unsigned(block[2 + i / 4]) >> 2 * (i % 4) & 3U) - 1);
  }
};

/// d · (code − 1), code i in byte i % 32, of 128 numbers in 32 bytes
struct TQ2_0 {
  static constexpr const char* name = "TQ2_0";
  static constexpr Index numbers = 256, bytes = 66;

  MOE_INLINE static void decode(const std::byte* block, float* to) {
    const auto d = codes::all(codes::half_at(block + 64));
    codes::Codes<256> its_codes;
    codes::recode_quarters(block, its_codes.at);
    codes::keep_in_memory(its_codes);
    codes::spread<256>(its_codes.at, to, [&](const auto& x) { return d * (x - 1.F); });
  }
};

/// d · (code − 1), five codes in a byte: the byte is 256 / 243 of a number of five digits of base 3, rounded up, so that
/// multiplied by 3 it carries the first digit, and keeps the others.
struct TQ1_0 {
  static constexpr const char* name = "TQ1_0";
  static constexpr Index numbers = 256, bytes = 54;

  MOE_INLINE static void decode(const std::byte* block, float* to) {
    const auto d = codes::all(codes::half_at(block + 52));
    codes::Codes<256> its_codes;
    digits<32, 5>(block, its_codes.at);
    digits<16, 5>(block + 32, its_codes.at + 160);
    digits<4, 4>(block + 48, its_codes.at + 240);
    codes::keep_in_memory(its_codes);
    codes::spread<256>(its_codes.at, to, [&](const auto& x) { return d * x; });
  }

 private:
  /// to[n · width + i] = digit n of byte i, less 1. For a byte b, ⌊3 b / 256⌋ is 1 from 86 on, and 2 from 171 on.
  template <int width, int count>
  MOE_INLINE static void digits(const std::byte* from, std::int8_t* to) {
    constexpr std::uint8_t powers[] = {1, 3, 9, 27, 81};
    kernels::repeat<count>([&](int n) __attribute__((always_inline)) {
      const auto digit = [power = powers[n]](const auto& byte) __attribute__((always_inline)) {
        const auto left = byte * power;
        using Same = std::remove_cv_t<decltype(left)>;
        return (Same)(left < 171) - (Same)(left >= 86);
      };
      codes::recode<width>(to + n * width, digit, from);
    });
  }
};

}  // namespace moe::inline MOE_TARGET
