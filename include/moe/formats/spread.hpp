/// @file  Turns codes of a few bits into registers of floats.
///
/// In two steps that every processor takes well: bytes to bytes, a register of them at a time, each then one code; and
/// codes to floats, a register of these at a time. Where sixteen floats fit into a register, codes of four bits are
/// looked up among floats at once.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "moe/core/types.hpp"
#include "moe/formats/codes.hpp"
#include "moe/kernels/lanes.hpp"
#include "moe/kernels/lookup.hpp"

#if defined(__SSE2__)
#include "moe/formats/x86/spread.hpp"
#elif defined(__aarch64__)
#include "moe/formats/arm/spread.hpp"
#else

namespace moe::inline MOE_TARGET::codes {

/// A register of floats of as many codes.
MOE_INLINE Lanes<float> floats_of(const std::int8_t* codes) {
  return __builtin_convertvector(kernels::load_as<IntLanes<std::int8_t>>(codes), Lanes<float>);
}

/// The two float16 at the beginning of a block, which has 16 bytes at least.
MOE_INLINE TwoFloats first_halves(const std::byte* block) { return {half_at(block), half_at(block + 2)}; }

/// Lane i is values[codes[i]]; codes are below 16.
MOE_INLINE Bytes<16> look_up(const SixteenValues& values, const Bytes<16>& codes) {
  Bytes<16> found{};
  for (std::size_t i = 0; i < 16; ++i) found[i] = std::uint8_t(values[codes[i]]);
  return found;
}

}  // namespace moe::inline MOE_TARGET::codes

#endif

namespace moe::inline MOE_TARGET::codes {

/// The same of any register of codes.
template <int count>
MOE_INLINE Bytes<count> look_up_all(const SixteenValues& values, const Bytes<count>& codes) {
  if constexpr (requires { look_up(values, codes); }) {
    return look_up(values, codes);
  } else {
    Bytes<16> parts[count / 16];
    kernels::store(parts, codes);
    kernels::repeat<count / 16>([&](int i) __attribute__((always_inline)) { parts[i] = look_up(values, parts[i]); });
    return kernels::load_as<Bytes<count>>(parts);
  }
}

/// codes[i] = code_of(from[i] …), a function of registers of bytes.
template <int count, class F, class... From>
MOE_INLINE void recode(std::int8_t* codes, const F& code_of, const From*... from) {
  constexpr int width = std::min(count, int(kernels::register_bytes));
  static_assert(count % width == 0);
  kernels::repeat<count / width>([&](int i) __attribute__((always_inline)) {
    kernels::store(codes + i * width, code_of(kernels::load_as<Bytes<width>>(from + i * width)...));
  });
}

/// to[i] = value_of(codes[i]), a function of registers of floats.
template <int count, class F>
MOE_INLINE void spread(const std::int8_t* codes, float* to, const F& value_of) {
  constexpr int width = kernels::lanes<float>;
  static_assert(count % width == 0);
  kernels::repeat<count / width>([&](int i) __attribute__((always_inline)) {
    kernels::store(to + i * width, value_of(floats_of(codes + i * width)));
  });
}

/// Makes it memory: g++ would otherwise take apart the registers that were stored there, which costs more than loads.
template <int count>
MOE_INLINE void keep_in_memory(Codes<count>& codes) {
  asm("" : "+m"(codes));
}

/// What the scales of up to sixteen groups of numbers come to.
struct alignas(64) GroupScales {
  float at[16];
};

/// scales.at[i] = factor · codes[i]
MOE_INLINE void multiply_scales(const std::int8_t* codes, float factor, GroupScales& scales) {
  spread<16>(codes, scales.at, [f = all(factor)](const auto& x) { return f * x; });
}

/// Sixteen codes at once: two stores would have to be over before both are loaded.
MOE_INLINE void store_sixteen(std::uint64_t first, std::uint64_t second, Codes<16>& codes) {
  kernels::store(codes.at, kernels::detail::VectorOf<std::uint64_t, 16>::type{first, second});
  keep_in_memory(codes);
}

/// Of each byte the bits of a mask, moved down (or up, where `down` is negative). Bits that come in from a neighbour
/// must be none of the mask's: processors shift two bytes together, not one.
template <class V>
MOE_INLINE V moved(const V& bytes, int down, int mask) {
  using Pairs = typename kernels::detail::VectorOf<std::uint16_t, sizeof(V)>::type;
  const auto pairs = (Pairs)bytes;
  return (V)(down >= 0 ? pairs >> std::uint16_t(down) : pairs << std::uint16_t(-down)) & std::uint8_t(mask);
}

/// Byte i is 255 if bit i of those at `from` is set, the lowest of the first byte first, and else 0.
template <int count>
MOE_INLINE Bytes<count> bytes_of_bits(const std::byte* from) {
  using Words = typename kernels::detail::VectorOf<std::uint32_t, std::size_t(count)>::type;
  if constexpr (count == 32) {
    const auto bits = (Bytes<32>)(kernels::load_as<std::uint32_t>(from) + Words{});
    constexpr Bytes<32> one = {1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128,
                               1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128};
    return (Bytes<32>)((__builtin_shufflevector(bits, bits, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 18, 18, 18,
                                                18, 18, 18, 18, 18, 19, 19, 19, 19, 19, 19, 19, 19) &
                        one) == one);
  } else {
    const auto bits = (Bytes<16>)(kernels::load_as<std::uint16_t>(from) + Words{});
    constexpr Bytes<16> one = {1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128};
    return (Bytes<16>)((__builtin_shufflevector(bits, bits, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1) & one) ==
                       one);
  }
}

/// 64 bytes hold 256 codes of two bits: byte i those of numbers i, 32 + i, 64 + i, 96 + i, and byte 32 + i likewise of
/// the second half.
MOE_INLINE void recode_quarters(const std::byte* bytes, std::int8_t* to) {
  kernels::repeat<8>([&](int n) __attribute__((always_inline)) {
    const auto code_of = [=](const auto& four) __attribute__((always_inline)) { return moved(four, n % 4 * 2, 3); };
    recode<32>(to + 32 * n, code_of, bytes + n / 4 * 32);
  });
}

/// 16 bytes hold 32 codes of four bits: in the low halves those of the first 16 numbers, in the high halves of the
/// others (run = 16), or so for each 8 bytes (run = 8). to[i] = values[code i].
template <const SixteenValues& values, int run = 16>
MOE_INLINE void recode_nibbles(const std::byte* bytes, std::int8_t* to) {
  const auto value_of = [](const auto& codes) __attribute__((always_inline)) {
    if constexpr (values == sixteen_from(values[0])) {
      return codes + std::uint8_t(values[0]);
    } else {
      return look_up(values, codes);
    }
  };
#if defined(__AVX2__)
  using Eights = kernels::detail::VectorOf<std::uint64_t, 32>::type;
  const Bytes<32> all_values = value_of(nibbles(bytes));
  if constexpr (run == 16) {
    kernels::store(to, all_values);
  } else {
    kernels::store(to, __builtin_shufflevector((Eights)all_values, (Eights)all_values, 0, 2, 1, 3));
  }
#else
  using Eights = kernels::detail::VectorOf<std::uint64_t, 16>::type;
  const auto both = kernels::load_as<Bytes<16>>(bytes);
  const Bytes<16> low = value_of(both & 15), high = value_of(both >> 4);
  if constexpr (run == 16) {
    kernels::store(to, low);
    kernels::store(to + 16, high);
  } else {
    kernels::store(to, __builtin_shufflevector((Eights)low, (Eights)high, 0, 2));
    kernels::store(to + 16, __builtin_shufflevector((Eights)low, (Eights)high, 1, 3));
  }
#endif
}

/// Such codes with a fifth bit each, that of the first number the lowest of 4 bytes. to[i] = lowest + code i.
template <int lowest>
MOE_INLINE void recode_five_bits(const std::byte* bytes, const std::byte* fifth_bits, std::int8_t* to) {
  static_assert(lowest == 0 || lowest == -16);
  const auto with = [](const auto& four, const auto& fifth) __attribute__((always_inline)) {
    if constexpr (lowest == 0) {
      return four | (fifth & 0x10);
    } else {
      return four | (~fifth & 0xf0);
    }
  };
#if defined(__AVX2__)
  kernels::store(to, with(nibbles(bytes), bytes_of_bits<32>(fifth_bits)));
#else
  const auto both = kernels::load_as<Bytes<16>>(bytes);
  kernels::store(to, with(both & 15, bytes_of_bits<16>(fifth_bits)));
  kernels::store(to + 16, with(both >> 4, bytes_of_bits<16>(fifth_bits + 2)));
#endif
}

/// to[i] = value_of(values[code i]) of codes of four bits.
template <const SixteenValues& values, class F>
MOE_INLINE void spread_nibbles(const std::byte* bytes, float* to, const F& value_of) {
#if defined(__AVX512F__)
  const kernels::Sixteen table = {{value_of(floats_of(values.data()))}};
  const auto codes = sixteen_codes(bytes);
  kernels::store(to, kernels::lookup(table, codes));
  kernels::store(to + 16, kernels::lookup(table, codes >> 4));
#else
  Codes<32> some;
  recode_nibbles<values>(bytes, some.at);
  keep_in_memory(some);
  spread<32>(some.at, to, value_of);
#endif
}

/// to[i] = value_of(lowest + code i) of codes of five bits.
template <int lowest, class F>
MOE_INLINE void spread_five_bits(const std::byte* bytes, const std::byte* fifth_bits, float* to, const F& value_of) {
#if defined(__AVX512F__)
  static constexpr SixteenValues low = sixteen_from(lowest), high = sixteen_from(lowest + 16);
  const Lanes<float> table = value_of(floats_of(low.data())), behind = value_of(floats_of(high.data()));
  const auto codes = sixteen_codes(bytes);
  const auto bits = kernels::load_as<std::uint32_t>(fifth_bits);
  kernels::store(to, look_up(table, behind, with_fifth_bit<0>(codes, bits)));
  kernels::store(to + 16, look_up(table, behind, with_fifth_bit<16>(codes >> 4, bits)));
#else
  Codes<32> some;
  recode_five_bits<lowest>(bytes, fifth_bits, some.at);
  keep_in_memory(some);
  spread<32>(some.at, to, value_of);
#endif
}

}  // namespace moe::inline MOE_TARGET::codes
