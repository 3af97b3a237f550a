/// @file  GGUF's types whose codes of four bits stand for numbers of a table.
#pragma once

#include <array>
#include <bit>
#include <cstdint>
#include <cstring>

#include "moe/core/quantized.hpp"
#include "moe/formats/detail/registers.hpp"
#include "moe/formats/spread.hpp"

namespace moe::inline MOE_TARGET {

namespace codes {

/// Denser where normally distributed weights are.
inline constexpr SixteenValues iq4_values = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

/// FP4 (E2M1) doubled. There is no −0: both zeros are one.
inline constexpr SixteenValues doubled_e2m1 = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

/// Half of 2^(code − 127).
constexpr float half_e8m0(std::uint8_t code) {
  return std::bit_cast<float>(code < 2 ? 0x200000U << code : (code - 1U) << 23);
}

/// Half of the FP8 (E4M3) of 7 bits, which counts on where E4M3 has its NaN, except that 127 is 0; bit 7 is ignored.
inline constexpr std::array<float, 256> half_ue4m3 = [] {
  std::array<float, 256> table{};
  for (unsigned code = 0; code < 256; ++code) {
    const unsigned exponent = code >> 3 & 15U, mantissa = code & 7U;
    float power = 1.F / 512;  // 2^(exponent − 10) with 3 bits of mantissa, halved
    for (unsigned e = 1; e < exponent; ++e) power *= 2;
    table[code] = code == 127 ? 0.F : float(exponent == 0 ? mantissa : mantissa + 8) * power / 2;
  }
  return table;
}();

}  // namespace codes

/// d · a number of IQ4's table
struct IQ4_NL : codes::InRegisters<IQ4_NL> {
  static constexpr const char* name = "IQ4_NL";
  static constexpr Index numbers = 32, bytes = 18;

  MOE_INLINE static void decode(const std::byte* block, float* to) {
    const auto d = codes::all(codes::first_halves(block).first);
    codes::spread_nibbles<codes::iq4_values>(block + 2, to, [&](const auto& x) { return d * x; });
  }

  static constexpr Index group = 32;
  static constexpr bool has_minima = false;

  MOE_INLINE static void integers(const std::byte* block, std::int8_t* its_codes, float* scales, float*) {
    scales[0] = codes::first_halves(block).first;
    codes::recode_nibbles<codes::iq4_values>(block + 2, its_codes);
  }

  template <int, class Wide>
  MOE_INLINE static auto wide_codes(const std::byte* block) {
    return Wide::look_up(codes::iq4_values, Wide::nibbles_of_two(block + 2, block + bytes + 2));
  }

  template <class Wide>
  MOE_INLINE static auto wide_scales(const std::byte* block) {
    return Wide::two_halves(block, block + bytes);
  }
};

/// d · scale · a number of IQ4's table, in groups of 32; scales have 6 bits, less 32.
struct IQ4_XS : codes::InRegisters<IQ4_XS> {
  static constexpr const char* name = "IQ4_XS";
  static constexpr Index numbers = 256, bytes = 136;

  static constexpr Index group = 32;
  static constexpr bool has_minima = false;

  MOE_INLINE static void decode(const std::byte* block, float* to) {
    const codes::GroupScales scales = its_scales(block);
    for (int g = 0; g < 8; ++g) {
      const auto scale = codes::all(scales.at[g]);
      codes::spread_nibbles<codes::iq4_values>(block + 8 + 16 * g, to + 32 * g,
                                               [&](const auto& x) { return scale * x; });
    }
  }

  MOE_INLINE static void integers(const std::byte* block, std::int8_t* its_codes, float* scales, float*) {
    const codes::GroupScales all = its_scales(block);
    std::memcpy(scales, all.at, 8 * sizeof(float));
    for (int g = 0; g < 8; ++g) codes::recode_nibbles<codes::iq4_values>(block + 8 + 16 * g, its_codes + 32 * g);
  }

  template <int k, class Wide>
  MOE_INLINE static auto wide_codes(const std::byte* block) {
    const std::byte* const from = block + 8 + 32 * k;
    return Wide::look_up(codes::iq4_values, Wide::nibbles_of_two(from, from + 16));
  }

  template <class Wide>
  MOE_INLINE static void put_scales(const std::byte* block, codes::GroupScales& scales, codes::GroupScales&) {
    scales = its_scales(block);
  }

  /// The scales of its groups, then zeros.
  MOE_INLINE static codes::Codes<16> scale_codes(const std::byte* block) {
    codes::Codes<16> of_groups;
    codes::store_sixteen(
        eight_scales(kernels::load_as<std::uint32_t>(block + 4), kernels::load_as<std::uint16_t>(block + 2)), 0,
        of_groups);
    return of_groups;
  }

 private:
  MOE_INLINE static codes::GroupScales its_scales(const std::byte* block) {
    codes::GroupScales scales;
    codes::multiply_scales(scale_codes(block).at, codes::first_halves(block).first, scales);
    return scales;
  }

  /// A byte each, of eight times four low bits and eight times two high ones.
  static constexpr std::uint64_t eight_scales(std::uint64_t low, std::uint64_t high) {
    low = (low | low << 16) & 0x0000ffff0000ffffU;
    low = (low | low << 8) & 0x00ff00ff00ff00ffU;
    low = (low | low << 4) & 0x0f0f0f0f0f0f0f0fU;
    high = (high | high << 24) & 0x000000ff000000ffU;
    high = (high | high << 12) & 0x000f000f000f000fU;
    high = (high | high << 6) & 0x0303030303030303U;
    return codes::less_32(low | high << 4);
  }
};

/// 2^(scale − 127) · E2M1. The scale is a byte and no NaN even if it is 255.
struct GgmlMxfp4 : codes::InRegisters<GgmlMxfp4> {
  static constexpr const char* name = "MXFP4";
  static constexpr Index numbers = 32, bytes = 17;

  MOE_INLINE static void decode(const std::byte* block, float* to) {
    const auto scale = codes::all(codes::half_e8m0(std::uint8_t(*block)));
    codes::spread_nibbles<codes::doubled_e2m1>(block + 1, to, [&](const auto& x) { return scale * x; });
  }

  static constexpr Index group = 32;
  static constexpr bool has_minima = false;

  MOE_INLINE static void integers(const std::byte* block, std::int8_t* its_codes, float* scales, float*) {
    scales[0] = codes::half_e8m0(std::uint8_t(*block));
    codes::recode_nibbles<codes::doubled_e2m1>(block + 1, its_codes);
  }

  template <int, class Wide>
  MOE_INLINE static auto wide_codes(const std::byte* block) {
    return Wide::look_up(codes::doubled_e2m1, Wide::nibbles_of_two(block + 1, block + bytes + 1));
  }

  template <class Wide>
  MOE_INLINE static auto wide_scales(const std::byte* block) {
    return Wide::two_e8m0(block[0], block[bytes]);
  }
};

/// E4M3 without a sign · E2M1, in groups of 16. There is no scale of the whole matrix in it.
struct GgmlNvfp4 : codes::InRegisters<GgmlNvfp4> {
  static constexpr const char* name = "NVFP4";
  static constexpr Index numbers = 64, bytes = 36;

  MOE_INLINE static void decode(const std::byte* block, float* to) {
    codes::Codes<64> its_codes;
    codes::recode_nibbles<codes::doubled_e2m1, 8>(block + 4, its_codes.at);
    codes::recode_nibbles<codes::doubled_e2m1, 8>(block + 20, its_codes.at + 32);
    codes::keep_in_memory(its_codes);
    for (int g = 0; g < 4; ++g) {
      const auto scale = codes::all(codes::half_ue4m3[std::size_t(block[g])]);
      codes::spread<16>(its_codes.at + 16 * g, to + 16 * g, [&](const auto& x) { return scale * x; });
    }
  }

  static constexpr Index group = 16;
  static constexpr bool has_minima = false;

  MOE_INLINE static void integers(const std::byte* block, std::int8_t* its_codes, float* scales, float*) {
    codes::recode_nibbles<codes::doubled_e2m1, 8>(block + 4, its_codes);
    codes::recode_nibbles<codes::doubled_e2m1, 8>(block + 20, its_codes + 32);
    for (int g = 0; g < 4; ++g) scales[g] = codes::half_ue4m3[std::size_t(block[g])];
  }
};

}  // namespace moe::inline MOE_TARGET
