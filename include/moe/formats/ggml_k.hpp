/// @file  GGUF's K types: 256 numbers in groups that have small scales of their own.
///
/// Numbers of a group are d · scale · code, or d · scale · code − dmin · minimum, where d and dmin are float16 of the
/// block, scale and minimum integers of the group. Every product but that of Q6_K is exact in float, so a fused
/// subtraction gives the same bits.
#pragma once

#include <cstdint>
#include <cstring>

#include "moe/core/quantized.hpp"
#include "moe/formats/detail/registers.hpp"
#include "moe/formats/spread.hpp"
#include "moe/kernels/multiply_add.hpp"

namespace moe::inline MOE_TARGET {

namespace codes {

/// The 8 scales of 6 bits, then the 8 minima, that Q4_K and Q5_K keep in 12 bytes: 0 to 3 in the low bits of bytes 0 to
/// 3 (minima: 4 to 7), 4 to 7 in the low (high) halves of bytes 8 to 11, with two bits on top of the former.
MOE_INLINE void unpack_scales_and_minima(const std::byte* from, Codes<16>& to) {
#if defined(__AVX2__)
  kernels::store(to.at, scales_and_minima(from));
#else
  const auto a = kernels::load_as<std::uint32_t>(from), b = kernels::load_as<std::uint32_t>(from + 4),
             c = kernels::load_as<std::uint32_t>(from + 8);
  const auto eight = [](std::uint32_t low, std::uint32_t high) {
    return (low & 0x3f3f3f3fU) | std::uint64_t((high & 0x0f0f0f0fU) | (low >> 2 & 0x30303030U)) << 32;
  };
  store_sixteen(eight(a, c), eight(b, c >> 4), to);
#endif
}

/// Of Q4_K and Q5_K, the scales of 8 groups, and, from 8 on, their minima.
MOE_INLINE void eight_scales_and_minima(const std::byte* block, GroupScales& scales, GroupScales& minima) {
  const auto [d, dmin] = first_halves(block);
  Codes<16> both;
  unpack_scales_and_minima(block + 4, both);
  multiply_scales(both.at, d, scales);
  multiply_scales(both.at, -dmin, minima);
}

/// The scales and minima of 8 groups, zeros behind the latter.
template <class Wide>
MOE_INLINE void put_scales_of_eight(const std::byte* block, GroupScales& scales, GroupScales& minima) {
  GroupScales behind;
  eight_scales_and_minima(block, scales, behind);
  kernels::store(minima.at, Wide::upper_half(kernels::load_as<Lanes<float>>(behind.at)));
}

/// Q4_K and Q5_K but for their codes: groups of 32, scales and minima of 6 bits.
/// @tparam Block  recode(block, to): the codes of 256 numbers
template <class Block>
struct EightGroups {
  static constexpr Index numbers = 256, group = 32;
  static constexpr bool has_minima = true;

  MOE_INLINE static void decode(const std::byte* block, float* to) {
    Codes<256> its_codes;
    Block::recode(block, its_codes.at);
    GroupScales scales, minima;
    eight_scales_and_minima(block, scales, minima);
    keep_in_memory(its_codes);
    for (int g = 0; g < 8; ++g) {
      const auto scale = all(scales.at[g]), minimum = all(minima.at[8 + g]);
      spread<32>(its_codes.at + 32 * g, to + 32 * g,
                 [&](const auto& x) { return kernels::multiply_add(scale, x, minimum); });
    }
  }

  MOE_INLINE static void integers(const std::byte* block, std::int8_t* its_codes, float* scales, float* its_minima) {
    Block::recode(block, its_codes);
    GroupScales all_scales, minima;
    eight_scales_and_minima(block, all_scales, minima);
    std::memcpy(scales, all_scales.at, 8 * sizeof(float));
    std::memcpy(its_minima, minima.at + 8, 8 * sizeof(float));
  }
};

/// Q3_K and Q6_K but for their codes and scales: groups of 16.
/// @tparam Block  recode(block, to): the codes of 256 numbers; multiply_scales(block, to): the scales of all groups
template <class Block>
struct SixteenGroups {
  static constexpr Index numbers = 256, group = 16;
  static constexpr bool has_minima = false;

  MOE_INLINE static void decode(const std::byte* block, float* to) {
    GroupScales scales;
    Block::multiply_scales(block, scales);
    Codes<256> its_codes;
    Block::recode(block, its_codes.at);
    keep_in_memory(its_codes);
    for (int g = 0; g < 16; ++g) {
      const auto scale = all(scales.at[g]);
      spread<16>(its_codes.at + 16 * g, to + 16 * g, [&](const auto& x) { return scale * x; });
    }
  }

  MOE_INLINE static void integers(const std::byte* block, std::int8_t* its_codes, float* scales, float*) {
    GroupScales all_scales;
    Block::multiply_scales(block, all_scales);
    kernels::store(scales, all_scales);
    Block::recode(block, its_codes);
  }
};

}  // namespace codes

/// Groups of 16; scales and minima of 4 bits, codes of 2.
struct Q2_K : codes::InRegisters<Q2_K> {
  static constexpr const char* name = "Q2_K";
  static constexpr Index numbers = 256, bytes = 84;

  static constexpr Index group = 16;
  static constexpr bool has_minima = true;

  MOE_INLINE static void decode(const std::byte* block, float* to) {
    codes::GroupScales scales, minima;
    multiply_scales(block, scales, minima);
    codes::Codes<256> its_codes;
    codes::recode_quarters(block + 16, its_codes.at);
    codes::keep_in_memory(its_codes);
    for (int g = 0; g < 16; ++g) {
      const auto scale = codes::all(scales.at[g]), minimum = codes::all(minima.at[g]);
      codes::spread<16>(its_codes.at + 16 * g, to + 16 * g,
                        [&](const auto& x) { return kernels::multiply_add(scale, x, minimum); });
    }
  }

  MOE_INLINE static void integers(const std::byte* block, std::int8_t* its_codes, float* scales, float* minima) {
    codes::GroupScales all, all_minima;
    multiply_scales(block, all, all_minima);
    kernels::store(scales, all);
    kernels::store(minima, all_minima);
    codes::recode_quarters(block + 16, its_codes);
  }

 private:
  MOE_INLINE static void multiply_scales(const std::byte* groups, codes::GroupScales& scales,
                                         codes::GroupScales& minima) {
    const float d = codes::half_at(groups + 80), dmin = codes::half_at(groups + 82);
    codes::Codes<16> low, high;
    codes::recode<16>(low.at, [](const auto& both) { return both & 15; }, groups);
    codes::recode<16>(high.at, [](const auto& both) { return both >> 4; }, groups);
    codes::keep_in_memory(low);
    codes::keep_in_memory(high);
    codes::multiply_scales(low.at, d, scales);
    codes::multiply_scales(high.at, -dmin, minima);
  }
};

/// Groups of 16; scales of 6 bits less 32, codes of 2 bits with a third one elsewhere, less 4.
struct Q3_K : codes::SixteenGroups<Q3_K>, codes::InRegisters<Q3_K> {
  static constexpr const char* name = "Q3_K";
  static constexpr Index bytes = 110;

 private:
  friend codes::SixteenGroups<Q3_K>;

  MOE_INLINE static void multiply_scales(const std::byte* block, codes::GroupScales& scales) {
    const std::byte* const groups = block + 96;
    // 16 of 6 bits: in 8 bytes the low four of 0 to 7 and of 8 to 15, in 4 bytes the high two, each of every fourth
    const auto fours = kernels::load_as<std::uint64_t>(groups);
    const std::uint64_t some = kernels::load_as<std::uint32_t>(groups + 8), twos = some | some >> 2 << 32;
    constexpr std::uint64_t four = 0x0f0f0f0f0f0f0f0fU, two = 0x3030303030303030U;
    codes::Codes<16> its_scales;
    codes::store_sixteen(codes::less_32((fours & four) | (twos << 4 & two)),
                         codes::less_32((fours >> 4 & four) | (twos & two)), its_scales);
    codes::multiply_scales(its_scales.at, codes::half_at(block + 108), scales);
  }

  MOE_INLINE static void recode(const std::byte* block, std::int8_t* its_codes) {
    const std::byte *const third_bits = block, *const quarters = block + 32;
    kernels::repeat<8>([&](int n) __attribute__((always_inline)) {  // 32 numbers each
      const auto code_of = [=](const auto& low, const auto& high) __attribute__((always_inline)) {
        return (codes::moved(low, n % 4 * 2, 3) | codes::moved(high, n - 2, 4)) - 4;
      };
      codes::recode<32>(its_codes + 32 * n, code_of, quarters + n / 4 * 32, third_bits);
    });
  }
};

/// Groups of 32; scales and minima of 6 bits, codes of 4.
struct Q4_K : codes::EightGroups<Q4_K>, codes::InRegisters<Q4_K> {
  static constexpr const char* name = "Q4_K";
  static constexpr Index bytes = 144;

  template <int k, class Wide>
  MOE_INLINE static auto wide_codes(const std::byte* block) {
    return Wide::nibbles(block + 16 + 32 * k);
  }

  template <class Wide>
  MOE_INLINE static void put_scales(const std::byte* block, codes::GroupScales& scales, codes::GroupScales& minima) {
    codes::put_scales_of_eight<Wide>(block, scales, minima);
  }

 private:
  friend codes::EightGroups<Q4_K>;

  MOE_INLINE static void recode(const std::byte* block, std::int8_t* its_codes) {
    kernels::repeat<8>([&](int n) __attribute__((always_inline)) {  // 32 numbers each
      const auto code_of = [=](const auto& four)
                               __attribute__((always_inline)) { return codes::moved(four, n % 2 * 4, 15); };
      codes::recode<32>(its_codes + 32 * n, code_of, block + 16 + n / 2 * 32);
    });
  }
};

/// Groups of 32; scales and minima of 6 bits, codes of 4 bits with a fifth one elsewhere.
struct Q5_K : codes::EightGroups<Q5_K>, codes::InRegisters<Q5_K> {
  static constexpr const char* name = "Q5_K";
  static constexpr Index bytes = 176;

  template <int k, class Wide>
  MOE_INLINE static auto wide_codes(const std::byte* block) {
    return Wide::nibbles(block + 48 + 32 * k) | Wide::template bits<4 - 2 * k, 3 - 2 * k>(block + 16, 16);
  }

  template <class Wide>
  MOE_INLINE static void put_scales(const std::byte* block, codes::GroupScales& scales, codes::GroupScales& minima) {
    codes::put_scales_of_eight<Wide>(block, scales, minima);
  }

 private:
  friend codes::EightGroups<Q5_K>;

  MOE_INLINE static void recode(const std::byte* block, std::int8_t* its_codes) {
    kernels::repeat<8>([&](int n) __attribute__((always_inline)) {  // 32 numbers each
      const auto code_of = [=](const auto& four, const auto& fifth) __attribute__((always_inline)) {
        return codes::moved(four, n % 2 * 4, 15) | codes::moved(fifth, n - 4, 16);
      };
      codes::recode<32>(its_codes + 32 * n, code_of, block + 48 + n / 2 * 32, block + 16);
    });
  }
};

/// Groups of 16; scales of 8 bits with a sign, codes of 4 bits with two elsewhere, less 32.
struct Q6_K : codes::SixteenGroups<Q6_K>, codes::InRegisters<Q6_K> {
  static constexpr const char* name = "Q6_K";
  static constexpr Index bytes = 210;

  static constexpr int offset = 32;

  template <int k, class Wide>
  MOE_INLINE static auto wide_codes(const std::byte* block) {
    const auto both = kernels::load_as<codes::Bytes<64>>(block + k / 2 * 64);
    const auto twos = Wide::template bits<4 - k % 2 * 4, 2 - k % 2 * 4>(block + 128 + k / 2 * 32, 48);
    return codes::moved(both, k % 2 * 4, 15) | twos;
  }

  template <class Wide>
  MOE_INLINE static void put_scales(const std::byte* block, codes::GroupScales& scales, codes::GroupScales&) {
    multiply_scales(block, scales);
  }

 private:
  friend codes::SixteenGroups<Q6_K>;

  MOE_INLINE static void multiply_scales(const std::byte* block, codes::GroupScales& scales) {
    codes::multiply_scales(reinterpret_cast<const std::int8_t*>(block + 192), codes::half_at(block + 208), scales);
  }

  MOE_INLINE static void recode(const std::byte* block, std::int8_t* its_codes) {
    kernels::repeat<8>([&](int n) __attribute__((always_inline)) {  // 32 numbers each
      const int half = n / 4, part = n % 4;
      const auto code_of = [=](const auto& four, const auto& two) __attribute__((always_inline)) {
        return (codes::moved(four, part / 2 * 4, 15) | codes::moved(two, part * 2 - 4, 48)) - 32;
      };
      const std::byte *const fours = block + half * 64 + part % 2 * 32, *const twos = block + 128 + half * 32;
      codes::recode<32>(its_codes + 32 * n, code_of, fours, twos);
    });
  }
};

}  // namespace moe::inline MOE_TARGET
