/// @file  Codes of sixteen rows side by side, with their scales: what packed forms of blocks are made of.
#pragma once

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "moe/core/quantized.hpp"
#include "moe/core/types.hpp"
#include "moe/formats/codes.hpp"
#include "moe/formats/ggml_lookup.hpp"
#include "moe/formats/spread.hpp"
#include "moe/kernels/bytes.hpp"
#include "moe/kernels/packed_products.hpp"
#include "moe/kernels/widen.hpp"

namespace moe::inline MOE_TARGET::packing {

using kernels::ByteRegister;
using kernels::Lanes;
using kernels::packed_rows;
using kernels::panels_of;

/// Byte k of the four neighbours of a row in a plane of 64 bytes.
constexpr Index place(Index row, Index k) { return 4 * row + k % 4; }

/// A register of them.
using Register = codes::Bytes<int(kernels::register_bytes)>;

/// Codes of four bits, 32 neighbours of each row: a plane holds four neighbours in its low halves and the next four in
/// its high ones.
struct FourBits {
  static constexpr Index group = 32, code_bytes = 4 * 64;
  static constexpr int bits = 4;

  /// Four neighbours, the u-th of a group, moved up by so many bits.
  template <int u, int up>
  MOE_INLINE static Register registers(const std::byte* from) {
    return codes::moved(kernels::load_as<Register>(from + u / 2 * 64), u % 2 * 4 - up, 15 << up);
  }

  /// Code k of a row; from the panel's codes of the group.
  static unsigned get(const std::byte* from, Index row, Index k) {
    return std::to_integer<unsigned>(from[k / 8 * 64 + place(row, k)]) >> k / 4 % 2 * 4 & 15U;
  }
  /// Puts it where zeros are.
  static void put(std::byte* to, Index row, Index k, unsigned code) {
    to[k / 8 * 64 + place(row, k)] |= std::byte(code << k / 4 % 2 * 4);
  }
};

/// Codes of six bits, 16 neighbours: low four bits as above, then a plane of the two high bits, those of the first four
/// neighbours lowest.
struct SixBits {
  static constexpr Index group = 16, code_bytes = 3 * 64;
  static constexpr int bits = 6;

  template <int u, int up>
  MOE_INLINE static Register registers(const std::byte* from) {
    return FourBits::registers<u, up>(from) |
           codes::moved(kernels::load_as<Register>(from + 128), 2 * u - 4 - up, 48 << up);
  }

  static unsigned get(const std::byte* from, Index row, Index k) {
    const unsigned high = std::to_integer<unsigned>(from[128 + place(row, k)]) >> 2 * (k / 4) & 3U;
    return FourBits::get(from, row, k) | high << 4;
  }
  static void put(std::byte* to, Index row, Index k, unsigned code) {
    FourBits::put(to, row, k, code & 15U);
    to[128 + place(row, k)] |= std::byte((code >> 4) << 2 * (k / 4));
  }
};

/// Codes of a byte.
struct EightBits {
  static constexpr Index group = 32, code_bytes = 8 * 64;
  static constexpr int bits = 8;

  template <int u, int up>
  MOE_INLINE static Register registers(const std::byte* from) {
    return kernels::load_as<Register>(from + u * 64);
  }

  static unsigned get(const std::byte* from, Index row, Index k) {
    return std::to_integer<unsigned>(from[k / 4 * 64 + place(row, k)]);
  }
  static void put(std::byte* to, Index row, Index k, unsigned code) {
    to[k / 4 * 64 + place(row, k)] = std::byte(code);
  }
};

/// Codes of which the half, 2^(bits − 1), is the middle: so many times as large, where a sum has starts, that this is
/// 128.
template <class Its>
struct Centred : Its {
  static constexpr int middle = 1 << (Its::bits - 1), up = kernels::has_starts ? 8 - Its::bits : 0;
  static constexpr float times = 1 << up;

  template <int u>
  MOE_INLINE static ByteRegister codes(const std::byte* from) {
    const Register its = Its::template registers<u, up>(from);
    return (ByteRegister)(kernels::has_starts ? its : its - std::uint8_t(middle));
  }

  static int value(unsigned code) { return int(code) - middle; }
  static unsigned code_of(int value) { return unsigned(value + middle); }
};

/// Codes that are none but that, beside minima.
template <class Its>
struct Positive : Its {
  static constexpr float times = 1;

  template <int u>
  MOE_INLINE static ByteRegister codes(const std::byte* from) {
    return (ByteRegister)Its::template registers<u, 0>(from);
  }

  static int value(unsigned code) { return int(code); }
  static unsigned code_of(int value) { return unsigned(value); }
};

/// Codes of four bits that stand for numbers of a table.
template <const codes::SixteenValues& values>
struct Table : FourBits {
  static constexpr float times = 1;

  template <int u>
  MOE_INLINE static ByteRegister codes(const std::byte* from) {
    return (ByteRegister)codes::look_up_all<int(kernels::register_bytes)>(its_values, registers<u, 0>(from));
  }

  static int value(unsigned code) { return values[code]; }
  static unsigned code_of(int value) {
    unsigned code = 0;
    while (values[code] != value) ++code;
    return code;
  }

 private:
  static constexpr codes::SixteenValues its_values = [] {
    codes::SixteenValues all = values;
    for (auto& its : all) its = std::int8_t(kernels::has_starts ? its ^ -128 : its);
    return all;
  }();
};

/// A float16 for each row, of 32 neighbours.
struct HalfScales {
  static constexpr Index numbers = 32, halves = packed_rows, scale_bytes = 2 * halves;
  static constexpr bool has_minima = false;

  MOE_INLINE static Lanes<float> scale(const std::byte* block, Index, Index row) {
    return kernels::widen(reinterpret_cast<const float16*>(block + 2 * row));
  }

  static float scale_at(const std::byte* block, Index, Index row) { return codes::half_at(block + 2 * row); }

  /// Puts the scale that a row's block begins with to its place.
  static void put_scales(const std::byte* from, Index row, std::byte* to) { std::memcpy(to + 2 * row, from, 2); }
};

/// A byte for each, half of 2^(byte − 127).
struct ByteScales {
  static constexpr Index numbers = 32, halves = 0, scale_bytes = packed_rows;
  static constexpr bool has_minima = false;

  MOE_INLINE static Lanes<float> scale(const std::byte* block, Index, Index row) {
    using Bits = kernels::Pairs;
    const auto code = (Bits)kernels::integers_of<std::uint8_t>(block + row);
    const Bits small = (Bits)(code < 2);
    return (Lanes<float>)((small & (0x200000U << (code & 1))) | (~small & ((code - 1) << 23)));
  }

  static float scale_at(const std::byte* block, Index, Index row) {
    return codes::half_e8m0(std::to_integer<std::uint8_t>(block[row]));
  }

  /// As above.
  static void put_scales(const std::byte* from, Index row, std::byte* to) { to[row] = *from; }
};

/// Of 256 neighbours in so many groups a float16 d for each row, with minima a second one; then of each group a byte,
/// by which d is multiplied, and with minima of each a byte by which less the second one is.
template <class Byte, Index groups, bool minima>
struct ScaledScales {
  static constexpr Index numbers = 256, halves = (minima ? 2 : 1) * packed_rows, scale_bytes = (2 + groups) * halves;
  static constexpr bool has_minima = minima;
  static constexpr Index first_code = (minima ? 4 : 2) * packed_rows, first_minimum = first_code + groups * packed_rows;

  MOE_INLINE static Lanes<float> scale(const std::byte* block, Index g, Index row) {
    return d_of(block + 2 * row) * byte_of(block + first_code + g * packed_rows + row);
  }
  MOE_INLINE static Lanes<float> minimum(const std::byte* block, Index g, Index row) {
    return -d_of(block + 2 * (packed_rows + row)) * byte_of(block + first_minimum + g * packed_rows + row);
  }

  static float scale_at(const std::byte* block, Index g, Index row) {
    return codes::half_at(block + 2 * row) * float(Byte(block[first_code + g * packed_rows + row]));
  }
  static float minimum_at(const std::byte* block, Index g, Index row) {
    return -codes::half_at(block + 2 * (packed_rows + row)) * float(Byte(block[first_minimum + g * packed_rows + row]));
  }

 protected:
  /// Puts what a row's block has to its place: d, dmin if it has minima, and a byte for each group, those of minima
  /// last.
  static void put_scaled(const std::byte* d, const std::byte* dmin, const std::int8_t* bytes, Index row,
                         std::byte* to) {
    std::memcpy(to + 2 * row, d, 2);
    if (minima) std::memcpy(to + 2 * (packed_rows + row), dmin, 2);
    for (Index i = 0; i < (minima ? 2 : 1) * groups; ++i) to[first_code + i * packed_rows + row] = std::byte(bytes[i]);
  }

 private:
  MOE_INLINE static Lanes<float> d_of(const std::byte* from) {
    return kernels::widen(reinterpret_cast<const float16*>(from));
  }
  MOE_INLINE static Lanes<float> byte_of(const std::byte* from) {
    return __builtin_convertvector(kernels::integers_of<Byte>(from), Lanes<float>);
  }
};

}  // namespace moe::inline MOE_TARGET::packing
