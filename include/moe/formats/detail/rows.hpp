/// @file  What formats of safetensors files read rows with.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#include "moe/core/quantized.hpp"
#include "moe/core/types.hpp"
#include "moe/kernels/bytes.hpp"
#include "moe/kernels/lanes.hpp"
#include "moe/kernels/lookup.hpp"
#include "moe/kernels/rounding.hpp"

namespace moe::inline MOE_TARGET::detail {

/// Names of types of one byte, for number_at(). E4M3: a sign, 4 bits of exponent, 3 of mantissa, no infinity. E8M0:
/// 2^(byte - 127).
struct E4m3 {};
struct E8m0 {};

/// The float that has these bits.
inline float float_of(std::uint32_t bits) {
  float number;
  std::memcpy(&number, &bits, sizeof number);
  return number;
}

/// Of every byte, what it is as E4M3. Micikevicius et al. 2022, "FP8 Formats for Deep Learning", arXiv:2209.05433.
inline constexpr std::array<float, 256> e4m3_numbers = [] {
  std::array<float, 256> numbers{};
  for (int code = 0; code < 256; ++code) {
    const int exponent = code >> 3 & 15, mantissa = code & 7;
    float size = exponent == 0 ? float(mantissa) : float(8 + mantissa);
    for (int e = exponent == 0 ? 1 : exponent; e < 10; ++e) size /= 2;
    for (int e = 10; e < exponent; ++e) size *= 2;
    if ((code & 127) == 127) size = std::numeric_limits<float>::quiet_NaN();
    numbers[std::size_t(code)] = code < 128 ? size : -size;
  }
  return numbers;
}();

/// The number at a place of an array of T, which may lie unaligned.
template <class T>
MOE_INLINE float number_at(const std::byte* from, Index i) {
  if constexpr (std::is_same_v<T, E4m3>) {
    return e4m3_numbers[std::size_t(from[i])];
  } else if constexpr (std::is_same_v<T, E8m0>) {
    const auto exponent = std::uint32_t(from[i]);
    return float_of(exponent == 0 ? 0x400000U : exponent << 23);
  } else if constexpr (std::is_same_v<T, bfloat16>) {
    return float_of(std::uint32_t(kernels::load_as<std::uint16_t>(from + i * 2)) << 16);
  } else {
    return static_cast<float>(kernels::load_as<T>(from + i * Index(sizeof(T))));
  }
}

/// Rounds numbers where they lie.
template <class Out>
inline void round_all(float* numbers, Index count) {
  if constexpr (std::is_same_v<Out, float>) return;
  constexpr Index step = kernels::lanes<float>;
  Index i = 0;
  for (; i + step <= count; i += step) {
    kernels::store(numbers + i, kernels::rounded_to<Out>(kernels::load_as<kernels::Lanes<float>>(numbers + i)));
  }
  float rest[step] = {};
  std::memcpy(rest, numbers + i, std::size_t(count - i) * sizeof(float));
  kernels::store(rest, kernels::rounded_to<Out>(kernels::load_as<kernels::Lanes<float>>(rest)));
  std::memcpy(numbers + i, rest, std::size_t(count - i) * sizeof(float));
}

/// f(group, first, count) for each run of columns of [first, end) that are of one group, `together` columns each; the
/// usual size, of whole groups, as a constant.
template <Index usual, class F>
MOE_INLINE void each_group(Index together, Index first, Index end, const F& f) {
  Index group = first / together;
  if (together == usual && first % usual == 0) {
    for (; first + usual <= end; first += usual, ++group) f(group, first, std::integral_constant<Index, usual>());
  }
  for (; first < end; ++group) {
    const Index count = std::min(end, (group + 1) * together) - first;
    f(group, first, count);
    first += count;
  }
}

/// Calls f(codes, to) for `step` numbers at a time, whose codes take `bits` each: where they lie, the last few in
/// memory of ours, so that nothing behind them is read or written.
template <int step, int bits, class F>
MOE_INLINE void in_steps(const std::byte* codes, Index count, float* to, const F& f) {
  static_assert(step * bits % 8 == 0);
  Index i = 0;
  for (; i + step <= count; i += step) f(codes + i * bits / 8, to + i);
  if (i == count) return;
  std::byte rest[step * bits / 8] = {};
  float numbers[step];
  std::memcpy(rest, codes + i * bits / 8, std::size_t(((count - i) * bits + 7) / 8));
  f(rest, numbers);
  std::memcpy(to + i, numbers, std::size_t(count - i) * sizeof(float));
}

/// to[i] = the table's number at code i of four bits each.
template <bool high_first = false>
MOE_INLINE void decode_nibbles(const std::byte* codes, Index count, const kernels::Sixteen& table, float* to) {
  in_steps<kernels::lanes<float>, 4>(codes, count, to,
                                     [&](const std::byte* from, float* into) __attribute__((always_inline)) {
                                       kernels::store(into, kernels::lookup(table, kernels::nibbles<high_first>(from)));
                                     });
}

/// Eight codes of `bits` bits each, from the lowest bits of a word on, as a byte each.
inline std::uint64_t spread(std::uint64_t word, int bits) {
  const auto low = [&](int codes) { return (std::uint64_t(1) << (codes * bits)) - 1; };
  const std::uint64_t four = low(4), two = low(2) * 0x100000001U, one = low(1) * 0x1000100010001U;
  word = (word & four) | (word >> (4 * bits) & four) << 32;
  word = (word & two) | (word >> (2 * bits) & two) << 16;
  return (word & one) | (word >> bits & one) << 8;
}

/// to[i] = code i of `bits` bits each, low bits first, for `count` of them; up to seven more are written.
inline void unpack(const std::byte* codes, int bits, Index count, std::uint8_t* to) {
  const std::byte* const end = codes + (count * bits + 7) / 8;
  for (Index i = 0; i < count; i += 8, codes += bits) {
    std::uint64_t word = 0;
    if (end - codes >= 8) {
      word = kernels::load_as<std::uint64_t>(codes);
    } else {
      std::memcpy(&word, codes, std::size_t(end - codes));
    }
    kernels::store(to + i, spread(word, bits));
  }
}

/// to[i] = f(codes of a byte each, as floats), a register of them at a time.
template <class Code, class F>
MOE_INLINE void decode_bytes(const std::byte* codes, Index count, float* to, const F& f) {
  in_steps<kernels::lanes<float>, 8>(
      codes, count, to, [&](const std::byte* from, float* into) __attribute__((always_inline)) {
        kernels::store(into, f(__builtin_convertvector(kernels::integers_of<Code>(from), kernels::Lanes<float>)));
      });
}

/// The same of codes of `bits` bits each, from one that begins a byte on.
template <class F>
MOE_INLINE void decode_bits(const std::byte* codes, int bits, Index count, float* to, const F& f) {
  constexpr Index piece = 256;
  for (Index i = 0; i < count; i += piece) {
    std::uint8_t bytes[piece];  // a multiple of 8
    const Index some = std::min(piece, count - i);
    unpack(codes + i * bits / 8, bits, some, bytes);
    decode_bytes<std::uint8_t>(reinterpret_cast<const std::byte*>(bytes), some, to + i, f);
  }
}

/// Codes that share a byte with others: how many numbers to the next that begins one.
constexpr Index numbers_to_a_byte(int bits) { return bits == 8 ? 1 : bits == 4 ? 2 : bits == 2 ? 4 : 8; }

}  // namespace moe::inline MOE_TARGET::detail
