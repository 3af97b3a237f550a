/// @file  GGUF's types of one or two bits around one scale.
#pragma once

#include <algorithm>
#include <cstdint>

#include "moe/core/quantized.hpp"
#include "moe/formats/spread.hpp"

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
    const auto d = codes::all(codes::first_halves(block).first);
    codes::Codes<64> its_codes;
    kernels::repeat<4>([&](int i) __attribute__((always_inline)) {
      kernels::store(its_codes.at + 16 * i, sixteen(block + 2 + 4 * i));
    });
    codes::keep_in_memory(its_codes);
    codes::spread<64>(its_codes.at, to, [&](const auto& x) { return d * x; });
  }

 private:
  /// Less 1: the number that each pair of bits is.
  MOE_INLINE static codes::Bytes<16> sixteen(const std::byte* four) {
    using Words = kernels::detail::VectorOf<std::uint32_t, 16>::type;
    const auto word = (codes::Bytes<16>)(kernels::load_as<std::uint32_t>(four) + Words{});
    const auto each = __builtin_shufflevector(word, word, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
    constexpr codes::Bytes<16> low = {1, 4, 16, 64, 1, 4, 16, 64, 1, 4, 16, 64, 1, 4, 16, 64}, high = low + low;
    return ((codes::Bytes<16>)((each & low) == low) & 1) + ((codes::Bytes<16>)((each & high) == high) & 2) - 1;
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

/// d · (code − 1), five codes in a byte: the byte is 256 / 243 of a number of five digits of base 3, rounded up, so
/// that multiplied by 3 it carries the first digit, and keeps the others.
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
  /// to[n · count + i] = digit n of byte i, less 1. For a byte b, ⌊3 b / 256⌋ is 1 from 86 on, and 2 from 171 on.
  template <int count, int num_digits>
  MOE_INLINE static void digits(const std::byte* from, std::int8_t* to) {
    constexpr int width = std::min(count, int(kernels::register_bytes));
    using Some = codes::Bytes<width>;
    kernels::repeat<count / width>([&](int i) __attribute__((always_inline)) {
      auto left = kernels::load_as<Some>(from + i * width);
      kernels::repeat<num_digits>([&](int n) __attribute__((always_inline)) {
        kernels::store(to + n * count + i * width, (Some)(left < 171) - (Some)(left >= 86));
        left = left + left + left;
      });
    });
  }
};

}  // namespace moe::inline MOE_TARGET
