/// @file  GGUF's types of 32 numbers around one scale.
///
/// A block begins with its scale d (float16), in the types _1 followed by a minimum m (float16), in Q5 then by the
/// fifth bits of its codes. Code i of four bits is the low half of byte i of the 16 that follow, code 16 + i the high
/// half.
#pragma once

#include <cstdint>

#include "moe/core/quantized.hpp"
#include "moe/formats/detail/registers.hpp"
#include "moe/formats/spread.hpp"
#include "moe/kernels/multiply_add.hpp"

namespace moe::inline MOE_TARGET {

namespace codes {
inline constexpr SixteenValues from_minus_8 = sixteen_from(-8), from_0 = sixteen_from(0);
}  // namespace codes

namespace codes {

/// Blocks of 32 numbers d · code, which begin with d.
/// @tparam Block  spread(block, to, f): f of the codes; recode(block, to): the codes
template <class Block>
struct OneScale {
  static constexpr Index numbers = 32, group = 32;
  static constexpr bool has_minima = false;

  MOE_INLINE static void decode(const std::byte* block, float* to) {
    const auto d = all(first_halves(block).first);
    Block::spread(block, to, [&](const auto& x) { return d * x; });
  }

  MOE_INLINE static void integers(const std::byte* block, std::int8_t* its_codes, float* scales, float*) {
    scales[0] = first_halves(block).first;
    Block::recode(block, its_codes);
  }

  template <class Wide>
  MOE_INLINE static auto wide_scales(const std::byte* block) {
    return Wide::two_halves(block, block + Block::bytes);
  }
};

/// Blocks of 32 numbers d · code + m, which begin with d and m.
/// @tparam Block  as above
template <class Block>
struct ScaleAndOffset {
  static constexpr Index numbers = 32, group = 32;
  static constexpr bool has_minima = true;

  MOE_INLINE static void decode(const std::byte* block, float* to) {
    const auto [scale, minimum] = first_halves(block);
    const auto d = all(scale), m = all(minimum);
    Block::spread(block, to, [&](const auto& x) { return kernels::multiply_add(d, x, m); });  // d · x is exact
  }

  MOE_INLINE static void integers(const std::byte* block, std::int8_t* its_codes, float* scales, float* minima) {
    const auto [scale, minimum] = first_halves(block);
    scales[0] = scale;
    minima[0] = minimum;
    Block::recode(block, its_codes);
  }

  template <class Wide>
  MOE_INLINE static auto wide_scales(const std::byte* block) {
    return Wide::two_halves(block, block + Block::bytes);
  }

  template <class Wide>
  MOE_INLINE static auto wide_minima(const std::byte* block) {
    return Wide::four_halves(block + 2, Block::bytes);
  }
};

}  // namespace codes

/// d · (code − 8)
struct Q4_0 : codes::OneScale<Q4_0>, codes::InRegisters<Q4_0> {
  static constexpr const char* name = "Q4_0";
  static constexpr Index bytes = 18;

  static constexpr int offset = 8;

  template <int, class Wide>
  MOE_INLINE static auto wide_codes(const std::byte* block) {
    return Wide::nibbles_of_two(block + 2, block + bytes + 2);
  }

 private:
  friend codes::OneScale<Q4_0>;

  template <class F>
  MOE_INLINE static void spread(const std::byte* block, float* to, const F& value_of) {
    codes::spread_nibbles<codes::from_minus_8>(block + 2, to, value_of);
  }
  MOE_INLINE static void recode(const std::byte* block, std::int8_t* to) {
    codes::recode_nibbles<codes::from_minus_8>(block + 2, to);
  }
};

/// d · code + m
struct Q4_1 : codes::ScaleAndOffset<Q4_1>, codes::InRegisters<Q4_1> {
  static constexpr const char* name = "Q4_1";
  static constexpr Index bytes = 20;

  template <int, class Wide>
  MOE_INLINE static auto wide_codes(const std::byte* block) {
    return Wide::nibbles_of_two(block + 4, block + bytes + 4);
  }

 private:
  friend codes::ScaleAndOffset<Q4_1>;

  template <class F>
  MOE_INLINE static void spread(const std::byte* block, float* to, const F& value_of) {
    codes::spread_nibbles<codes::from_0>(block + 4, to, value_of);
  }
  MOE_INLINE static void recode(const std::byte* block, std::int8_t* to) {
    codes::recode_nibbles<codes::from_0>(block + 4, to);
  }
};

/// d · (code − 16)
struct Q5_0 : codes::OneScale<Q5_0>, codes::InRegisters<Q5_0> {
  static constexpr const char* name = "Q5_0";
  static constexpr Index bytes = 22;

  static constexpr int offset = 16;

  template <int, class Wide>
  MOE_INLINE static auto wide_codes(const std::byte* block) {
    const auto fours = Wide::nibbles_of_two(block + 6, block + bytes + 6);
    return Wide::with_fifth_bits(fours, block + 2, block + bytes + 2);
  }

 private:
  friend codes::OneScale<Q5_0>;

  template <class F>
  MOE_INLINE static void spread(const std::byte* block, float* to, const F& value_of) {
    codes::spread_five_bits<-16>(block + 6, block + 2, to, value_of);
  }
  MOE_INLINE static void recode(const std::byte* block, std::int8_t* to) {
    codes::recode_five_bits<-16>(block + 6, block + 2, to);
  }
};

/// d · code + m
struct Q5_1 : codes::ScaleAndOffset<Q5_1>, codes::InRegisters<Q5_1> {
  static constexpr const char* name = "Q5_1";
  static constexpr Index bytes = 24;

  template <int, class Wide>
  MOE_INLINE static auto wide_codes(const std::byte* block) {
    const auto fours = Wide::nibbles_of_two(block + 8, block + bytes + 8);
    return Wide::with_fifth_bits(fours, block + 4, block + bytes + 4);
  }

 private:
  friend codes::ScaleAndOffset<Q5_1>;

  template <class F>
  MOE_INLINE static void spread(const std::byte* block, float* to, const F& value_of) {
    codes::spread_five_bits<0>(block + 8, block + 4, to, value_of);
  }
  MOE_INLINE static void recode(const std::byte* block, std::int8_t* to) {
    codes::recode_five_bits<0>(block + 8, block + 4, to);
  }
};

/// d · code, a byte with a sign
struct Q8_0 : codes::OneScale<Q8_0>, codes::InRegisters<Q8_0> {
  static constexpr const char* name = "Q8_0";
  static constexpr Index bytes = 34;

  template <int, class Wide>
  MOE_INLINE static auto wide_codes(const std::byte* block) {
    return Wide::two(block + 2, block + bytes + 2);
  }

 private:
  friend codes::OneScale<Q8_0>;

  template <class F>
  MOE_INLINE static void spread(const std::byte* block, float* to, const F& value_of) {
    codes::spread<32>(reinterpret_cast<const std::int8_t*>(block + 2), to, value_of);
  }
  MOE_INLINE static void recode(const std::byte* block, std::int8_t* to) {
    codes::recode<32>(to, [](const auto& its) { return its; }, block + 2);  // as registers, which are loaded
  }
};

}  // namespace moe::inline MOE_TARGET
