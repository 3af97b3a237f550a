/// @file  GGUF's blocks with one scale, from numbers: the bytes that ggml's own quantiser writes.
///
/// Formulas: ggml, src/ggml-quants.c of 0.21.0, whose bytes tests/real_quant has. With importance the scales of Q4_0,
/// Q4_1, Q5_0, Q5_1 and IQ4_NL are searched instead, for the least Σ importance · error². Q8_0, MXFP4, NVFP4, TQ1_0 and
/// TQ2_0 look at none, as there.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "moe/core/types.hpp"
#include "moe/formats/encode.hpp"
#include "moe/formats/encode_number.hpp"
#include "moe/formats/encode_search.hpp"
#include "moe/formats/ggml_legacy.hpp"
#include "moe/formats/ggml_lookup.hpp"
#include "moe/formats/ggml_tiny.hpp"
#include "moe/kernels/lanes.hpp"
#include "moe/kernels/rounding.hpp"

namespace moe::inline MOE_TARGET {

namespace encoding {

/// Where the largest magnitude is, of several the first.
inline Index peak(const float* x, Index count) {
  Index at = 0;
  for (Index i = 1; i < count; ++i) at = std::fabs(x[i]) > std::fabs(x[at]) ? i : at;
  return at;
}

/// ⌊x⌋ within 0 … last.
inline std::uint8_t floor_within(float x, int last) {
  return std::uint8_t(x < float(last) ? (x > 0 ? int(x) : 0) : last);
}

/// 32 codes of 4 bits: number j in the low half of byte j, j + 16 in the high one.
inline void write_nibbles(std::byte* to, const std::uint8_t (&code)[32]) {
  for (int j = 0; j < 16; ++j) to[j] = std::byte((code[j] & 15U) | unsigned(code[j + 16] & 15U) << 4);
}

/// The fifth bits of 32 codes: number j at bit j of 4 bytes, low ones first.
inline void write_fifth_bits(std::byte* to, const std::uint8_t (&code)[32]) {
  for (int byte = 0; byte < 4; ++byte) {
    unsigned bits = 0;
    for (int i = 0; i < 8; ++i) bits |= unsigned(code[8 * byte + i] >> 4 & 1U) << i;
    to[byte] = std::byte(bits);
  }
}

/// Codes of 0 … 2^bits − 1 about their middle: x = scale · (code − 2^(bits − 1)), the peak at code 0.
/// @return the scale
template <int bits>
float centred_codes(const float* x, std::uint8_t (&code)[32]) {
  constexpr int half = 1 << (bits - 1);
  const float scale = x[peak(x, 32)] / float(-half), inverse = reciprocal(scale);
  for (int j = 0; j < 32; ++j) {
    code[j] = floor_within(product(x[j], inverse) + (float(half) + 0.5F), 2 * half - 1);
  }
  return scale;
}

/// Codes of 0 … 2^bits − 1 from the least number to the largest: x = scale · code + least.
struct ScaleAndLeast {
  float scale, least;
};

/// The codes of 32 numbers: see ScaleAndLeast.
template <int bits>
ScaleAndLeast codes_from_least(const float* x, std::uint8_t (&code)[32]) {
  const auto [least, largest] = std::minmax_element(x, x + 32, [](float a, float b) { return a < b; });
  constexpr int last = (1 << bits) - 1;
  const float scale = (*largest - *least) / float(last), inverse = reciprocal(scale);
  for (int j = 0; j < 32; ++j) code[j] = floor_within(product(x[j] - *least, inverse) + 0.5F, last);
  return {scale, *least};
}

/// The code of E2M1 that is nearest to x = scale · number; of two as near the lower one, so that ties go towards zero,
/// and what becomes zero loses its sign.
inline std::uint8_t nearest_e2m1(float x, float half_scale) {
  std::uint8_t best = 0;
  float least = std::fabs(x);
  for (std::uint8_t code = 1; code < 16; ++code) {
    const float off = std::fabs(product(float(codes::doubled_e2m1[code]), half_scale) - x);
    if (off < least) {
      least = off;
      best = code;
    }
  }
  return best;
}

/// UE4M3 of ggml's NVFP4: halves up, but never from below 2^-6 to that; what would be 256 and more is 448.
inline std::uint8_t to_ue4m3(float x) {
  if (!(x > 0)) return 0;
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(std::min(x, 448.0F));
  if (bits < 0x3c800000U) return std::uint8_t(std::min(int(std::bit_cast<float>(bits) * 512 + 0.5F), 7));
  const std::uint32_t code = (bits + 0x80000U - 0x3c000000U) >> 20;
  return std::uint8_t(code >= 0x78U ? 0x7eU : code);
}

/// ⌊log2 x⌋ as ggml has it: of the logarithm rounded to float, which just below a power of two is that power's.
inline int exponent_of(float x) { return int(std::floor(float(std::log2(double(x))))); }

/// The numbers of IQ4_NL, by code.
inline constexpr std::array<std::int8_t, 16> uneven = {-127, -104, -83, -65, -49, -35, -22, -10,
                                                       1,    13,   25,  38,  53,  69,  89,  113};

/// The code of the number that is nearest to x; of two as near the higher one.
inline std::uint8_t nearest_uneven(float x) {
  std::uint8_t code = 0;
  while (code < 15 && !(x - float(uneven[code]) < float(uneven[code + 1]) - x)) ++code;
  return code;
}

/// The numbers of IQ4_NL, to be searched among.
struct Uneven {
  static constexpr std::array<float, 16> values = [] {
    std::array<float, 16> all{};
    std::copy(uneven.begin(), uneven.end(), all.begin());
    return all;
  }();
  /// The numbers of the table that are nearest to factor · x.
  template <int n>
  MOE_KERNEL static void find(const float* x, float factor, float* number) {
    using kernels::Lanes;
    const auto from = Several<n>::load(x);
    Several<n>::of([&](int part) __attribute__((always_inline)) {
      const Lanes<float> place = factor * from.part[part];
      Lanes<float> its = Lanes<float>{} + values[0];
      for (std::size_t code = 1; code < values.size(); ++code) {
        const float middle = (values[code - 1] + values[code]) * 0.5F, more = values[code] - values[code - 1];
        its += place >= middle ? Lanes<float>{} + more : Lanes<float>{};
      }
      return its;
    }).store(number);
  }
};

/// The numbers of IQ4_NL that are nearest to those of x; of two as near the higher one: nearest_uneven().
MOE_INLINE Several<32> nearest_unevens(const Several<32>& x) {
  using kernels::Lanes;
  return Several<32>::of([&](int part) __attribute__((always_inline)) {
    Lanes<float> its = Lanes<float>{} + float(uneven[0]);
    for (std::size_t code = 0; code < 15; ++code) {
      const float below = float(uneven[code]), above = float(uneven[code + 1]);
      const auto stays = x.part[part] - below < above - x.part[part];
      its += stays ? Lanes<float>{} : Lanes<float>{} + (above - below);
    }
    return its;
  });
}

/// The scale of 32 numbers of IQ4_NL: of sixteen tried, that which leaves the least Σ x² (x − scale · number)², each
/// after a fit to the numbers that it gave.
inline float uneven_scale(const float* x) {
  const float peak = x[encoding::peak(x, 32)];
  if (std::fabs(peak) < 1e-15F) return 0;
  float scale = 0, least = 0;  // least: how much is explained, at the scale that explains most
  for (int attempt = -8; attempt <= 7; ++attempt) {
    const float inverse = attempt == -8 ? 1 / (-peak / -127) : float(attempt - 127) / peak;
    float xn[32], nn[32];
    const auto all = Several<32>::load(x);
    const auto number = nearest_unevens(
        Several<32>::of([&](int i) __attribute__((always_inline)) { return kernels::product(inverse * all.part[i]); }));
    const auto weighted = Several<32>::of(
        [&](int i) __attribute__((always_inline)) { return all.part[i] * all.part[i] * number.part[i]; });
    Several<32>::of([&](int i) __attribute__((always_inline)) { return weighted.part[i] * all.part[i]; }).store(xn);
    Several<32>::of([&](int i) __attribute__((always_inline)) { return weighted.part[i] * number.part[i]; }).store(nn);
    rounded_here(xn);
    rounded_here(nn);
    float sum_xn = 0, sum_nn = 0;
    for (int j = 0; j < 32; ++j) sum_xn += xn[j];
    for (int j = 0; j < 32; ++j) sum_nn += nn[j];
    if (attempt != -8 && !(sum_nn > 0 && sum_xn * sum_xn > least * sum_nn)) continue;
    scale = sum_xn / sum_nn;
    least = scale * sum_xn;
  }
  return scale;
}

/// Codes of 32 numbers as centred_codes(), of which each counts.
/// @param plain  the scale that they have already; where float16 holds none such, codes stay as they are
template <int bits>
float weighted_centred_codes(const float* x, const float* importance, float plain, std::uint8_t (&code)[32]) {
  constexpr int half = 1 << (bits - 1);
  if (!is_half(plain)) return plain;
  float number[32];
  const float scale =
      search_scale<32, Centred<half>>(x, Importance<32>(importance, 32).w, from_half(to_half(plain)), number);
  Centred<half>::template find<32>(x, reciprocal(scale), number);
  for (int j = 0; j < 32; ++j) code[j] = std::uint8_t(int(number[j]) + half);
  return scale;
}

/// The same of IQ4_NL's numbers.
inline float weighted_uneven_codes(const float* x, const float* importance, float plain, std::uint8_t (&code)[32]) {
  if (!is_half(plain)) return plain;
  float number[32];
  const float scale = search_scale<32, Uneven>(x, Importance<32>(importance, 32).w, from_half(to_half(plain)), number);
  Uneven::find<32>(x, reciprocal(scale), number);
  for (int j = 0; j < 32; ++j) code[j] = nearest_uneven(number[j]);
  return scale;
}

/// Codes of 32 numbers as codes_from_least(), of which each counts.
template <int bits>
ScaleAndLeast weighted_codes_from_least(const float* x, const float* importance, ScaleAndLeast plain,
                                        std::uint8_t (&code)[32]) {
  if (!is_half(plain.scale) || !is_half(plain.least)) return plain;
  constexpr int last = (1 << bits) - 1;
  float number[32];
  const ScaleAndMinimum its = search_scale_and_minimum<32, last>(
      x, Importance<32>(importance, 32).w, {from_half(to_half(plain.scale)), -from_half(to_half(plain.least))}, number);
  find_codes<32>(x, its.minimum, reciprocal(its.scale), 0, last, number);
  for (int j = 0; j < 32; ++j) code[j] = std::uint8_t(number[j]);
  return {its.scale, -its.minimum};
}

/// Three codes, of -1, 0 and 1.
inline unsigned ternary(float x, float inverse) { return unsigned(round_away(product(x, inverse)) + 1); }

}  // namespace encoding

/// x = d · q, |q| ≤ 127.
template <>
struct Encoder<Q8_0> {
  static constexpr Index numbers = 32, bytes = 34;
  static void encode(const float* x, const float*, std::byte* block) {
    const float d = std::fabs(x[encoding::peak(x, 32)]) / 127, inverse = encoding::reciprocal(d);
    encoding::write_half(block, d);
    for (int j = 0; j < 32; ++j)
      block[2 + j] = std::byte(std::uint8_t(encoding::round_away(encoding::product(x[j], inverse))));
  }
};

/// x = d · (q − 8).
template <>
struct Encoder<Q4_0> {
  static constexpr Index numbers = 32, bytes = 18;
  static constexpr bool weighs = true;
  static void encode(const float* x, const float* importance, std::byte* block) {
    std::uint8_t code[32];
    float scale = encoding::centred_codes<4>(x, code);
    if (importance != nullptr) scale = encoding::weighted_centred_codes<4>(x, importance, scale, code);
    encoding::write_half(block, scale);
    encoding::write_nibbles(block + 2, code);
  }
};

/// x = d · q + m.
template <>
struct Encoder<Q4_1> {
  static constexpr Index numbers = 32, bytes = 20;
  static constexpr bool weighs = true;
  static void encode(const float* x, const float* importance, std::byte* block) {
    std::uint8_t code[32];
    auto its = encoding::codes_from_least<4>(x, code);
    if (importance != nullptr) its = encoding::weighted_codes_from_least<4>(x, importance, its, code);
    encoding::write_half(block, its.scale);
    encoding::write_half(block + 2, its.least);
    encoding::write_nibbles(block + 4, code);
  }
};

/// x = d · (q − 16).
template <>
struct Encoder<Q5_0> {
  static constexpr Index numbers = 32, bytes = 22;
  static constexpr bool weighs = true;
  static void encode(const float* x, const float* importance, std::byte* block) {
    std::uint8_t code[32];
    float scale = encoding::centred_codes<5>(x, code);
    if (importance != nullptr) scale = encoding::weighted_centred_codes<5>(x, importance, scale, code);
    encoding::write_half(block, scale);
    encoding::write_fifth_bits(block + 2, code);
    encoding::write_nibbles(block + 6, code);
  }
};

/// x = d · q + m.
template <>
struct Encoder<Q5_1> {
  static constexpr Index numbers = 32, bytes = 24;
  static constexpr bool weighs = true;
  static void encode(const float* x, const float* importance, std::byte* block) {
    std::uint8_t code[32];
    auto its = encoding::codes_from_least<5>(x, code);
    if (importance != nullptr) its = encoding::weighted_codes_from_least<5>(x, importance, its, code);
    encoding::write_half(block, its.scale);
    encoding::write_half(block + 2, its.least);
    encoding::write_fifth_bits(block + 4, code);
    encoding::write_nibbles(block + 8, code);
  }
};

/// x = d · one of 16 numbers that lie closer together about zero.
template <>
struct Encoder<IQ4_NL> {
  static constexpr Index numbers = 32, bytes = 18;
  static constexpr bool weighs = true;
  static void encode(const float* x, const float* importance, std::byte* block) {
    float scale = encoding::uneven_scale(x);
    const float inverse = encoding::reciprocal(scale);
    std::uint8_t code[32];
    for (int j = 0; j < 32; ++j) code[j] = encoding::nearest_uneven(encoding::product(inverse, x[j]));
    if (importance != nullptr) scale = encoding::weighted_uneven_codes(x, importance, scale, code);
    encoding::write_half(block, scale);
    encoding::write_nibbles(block + 2, code);
  }
};

/// x = 2^(e − 127) · E2M1, e of the peak's own exponent less 2, so that 7.9 becomes 6.
template <>
struct Encoder<GgmlMxfp4> {
  static constexpr Index numbers = 32, bytes = 17;
  static void encode(const float* x, const float*, std::byte* block) {
    const float peak = std::fabs(x[encoding::peak(x, 32)]);
    const int e = peak > 0 ? std::max(encoding::exponent_of(peak) - 2 + 127, 0) : 0;
    const float half_scale = e == 0 ? 0x1p-128F : encoding::power_of_two(e - 1);
    std::uint8_t code[32];
    for (int j = 0; j < 32; ++j) code[j] = encoding::nearest_e2m1(x[j], half_scale);
    block[0] = std::byte(e);
    encoding::write_nibbles(block + 1, code);
  }
};

/// x = UE4M3 · E2M1, a scale for each 16 of 64 numbers.
template <>
struct Encoder<GgmlNvfp4> {
  static constexpr Index numbers = 64, bytes = 36;
  static void encode(const float* x, const float*, std::byte* block) {
    for (int part = 0; part < 4; ++part) {
      const float* const its = x + 16 * part;
      const std::uint8_t scale = encoding::to_ue4m3(std::fabs(its[encoding::peak(its, 16)]) / 6);
      const float half_scale = encoding::from_e4m3(scale) * 0.5F;
      block[part] = std::byte(scale);
      for (int j = 0; j < 8; ++j) {
        block[4 + 8 * part + j] = std::byte(encoding::nearest_e2m1(its[j], half_scale) |
                                            unsigned(encoding::nearest_e2m1(its[j + 8], half_scale)) << 4);
      }
    }
  }
};

/// x = d · (−1, 0 or 1), five of them in a byte as digits of a number to the base of 3, 256/243 of it rounded up.
template <>
struct Encoder<TQ1_0> {
  static constexpr Index numbers = 256, bytes = 54;
  static void encode(const float* x, const float*, std::byte* block) {
    const float d = std::fabs(x[encoding::peak(x, 256)]), inverse = encoding::reciprocal(d);
    // Number first + i · step is digit i, the first one the highest.
    const auto digits = [&](Index first, Index step, int count) {
      unsigned number = 0;
      for (int i = 0; i < 5; ++i)
        number = number * 3 + (i < count ? encoding::ternary(x[first + i * step], inverse) : 0);
      return std::byte((number * 256 + 242) / 243);
    };
    for (int j = 0; j < 32; ++j) block[j] = digits(j, 32, 5);
    for (int j = 0; j < 16; ++j) block[32 + j] = digits(160 + j, 16, 5);
    for (int j = 0; j < 4; ++j) block[48 + j] = digits(240 + j, 4, 4);
    encoding::write_half(block + 52, d);
  }
};

/// x = d · (−1, 0 or 1), of 2 bits.
template <>
struct Encoder<TQ2_0> {
  static constexpr Index numbers = 256, bytes = 66;
  static void encode(const float* x, const float*, std::byte* block) {
    const float d = std::fabs(x[encoding::peak(x, 256)]), inverse = encoding::reciprocal(d);
    for (int half = 0; half < 2; ++half) {
      for (int j = 0; j < 32; ++j) {
        unsigned four = 0;
        for (int i = 0; i < 4; ++i) four |= encoding::ternary(x[128 * half + 32 * i + j], inverse) << 2 * i;
        block[32 * half + j] = std::byte(four);
      }
    }
    encoding::write_half(block + 64, d);
  }
};

}  // namespace moe::inline MOE_TARGET
