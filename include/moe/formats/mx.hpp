/// @file  Microscaling formats of 4 and 6 bits, as safetensors have them.
///
/// Open Compute Project 2023, "Microscaling Formats (MX)", §5: 32 numbers of a row share a scale of one byte, which
/// stands for 2^(byte - 127); so does 255, for 2^128, where software does not call it NaN.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "moe/core/quantized.hpp"
#include "moe/formats/detail/registers.hpp"
#include "moe/formats/detail/rows.hpp"
#include "moe/formats/ggml_lookup.hpp"
#include "moe/formats/spread.hpp"
#include "moe/kernels/lookup.hpp"
#include "moe/kernels/rounding.hpp"

namespace moe::inline MOE_TARGET {

namespace detail {

/// E2M1, twice: a sign, 2 bits of exponent, one of mantissa.
inline constexpr float twice_e2m1[16] = {0, 1, 2, 3, 4, 6, 8, 12, -0.F, -1, -2, -3, -4, -6, -8, -12};

/// 2^(byte - 128), for numbers that are twice as large: so that 0.5 · 2^128 is one.
MOE_INLINE float half_scale(std::byte byte) {
  const auto exponent = std::uint32_t(byte);
  return float_of(exponent < 2 ? 0x200000U << exponent : (exponent - 1) << 23);
}

inline void decode_mxfp4(const QuantizedMatrix& matrix, Index row, Index first, Index count, float* to) {
  const std::byte *codes = matrix.codes.row(row), *scales = matrix.scales.row(row);
  const kernels::Sixteen numbers = kernels::load_sixteen(twice_e2m1);
  each_group<32>(matrix.scales.cols_together, first, first + count, [&](Index group, Index at, auto size) {
    const float scale = half_scale(scales[group]);
    const auto scaled =
        kernels::each_part(numbers, [&](const auto& part) __attribute__((always_inline)) { return part * scale; });
    decode_nibbles(codes + std::size_t(at) / 2, size, scaled, to + (at - first));
  });
}

/// The codes of 32 numbers.
MOE_INLINE void put_mxfp4(const std::byte* bytes, std::int8_t* to) {
  std::int8_t halves[32];  // the lower halves of bytes, then the upper ones
  codes::recode_nibbles<codes::doubled_e2m1>(bytes, halves);
  const auto low = kernels::load_as<codes::Bytes<16>>(halves), high = kernels::load_as<codes::Bytes<16>>(halves + 16);
  kernels::store(to, __builtin_shufflevector(low, high, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23));
  kernels::store(to + 16,
                 __builtin_shufflevector(low, high, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31));
}

/// The codes of 32 numbers at a time, of which the last few of a row are fewer.
inline void take_mxfp4(const QuantizedMatrix& matrix, Index row, Index first, Index count, std::int8_t* to,
                       float* its_scales, float*) {
  const std::byte *bytes = matrix.codes.row(row) + first / 2, *scales = matrix.scales.row(row) + first / 32;
  for (Index i = 0; i < count; i += 32, bytes += 16) {
    *its_scales++ = half_scale(*scales++);
    if (i + 32 <= count) {
      put_mxfp4(bytes, to + i);
    } else {
      std::byte rest[16] = {};
      std::int8_t numbers[32];
      std::memcpy(rest, bytes, std::size_t(count - i) / 2);
      put_mxfp4(rest, numbers);
      std::memcpy(to + i, numbers, std::size_t(count - i));
    }
  }
}

/// A kernels::CodedRow of codes in one plane and scales in another.
struct Mxfp4Row {
  static constexpr Index unit = 128, group = 32;
  static constexpr bool is_whole = false, has_minima = false, is_unsigned = false;
  static constexpr int offset = 0;

  const std::byte *codes, *scales;
  Index apart, scales_apart;  // from one row to the next

  Mxfp4Row(const QuantizedMatrix& matrix, Index row)
      : codes(matrix.codes_at(row, 0)),
        scales(matrix.scales_at(row, 0)),
        apart(matrix.codes_at(row + 1, 0) - codes),
        scales_apart(matrix.scales_at(row + 1, 0) - scales) {}

  void go_on() {
    codes += apart;
    scales += scales_apart;
  }

  /// 128 numbers in registers.
  template <class Wide>
  struct WideUnit {
    const std::byte *its_codes, *its_scales;

    template <int k>
    MOE_INLINE kernels::ByteRegister codes() const {
      return (kernels::ByteRegister)Wide::look_up(moe::codes::doubled_e2m1, Wide::nibbles_in_turn(its_codes + 32 * k));
    }
    template <int k>
    MOE_INLINE auto scales() const {
      return Wide::two_e8m0(its_scales[2 * k], its_scales[2 * k + 1]);
    }
  };

  using Taken = kernels::TakenUnit<unit, group, has_minima>;

  MOE_INLINE static Taken taken(const std::byte* its_codes, const std::byte* its_scales) {
    Taken its;
    kernels::unroll<int(unit / group)>([&](auto i) __attribute__((always_inline)) {
      put_mxfp4(its_codes + i * 16, its.its_codes + i * 32);
      its.its_scales[i] = half_scale(its_scales[i]);
    });
    return its;
  }

  template <class Wide = moe::codes::Wide>
  MOE_INLINE static auto unit_of(const std::byte* its_codes, const std::byte* its_scales) {
    if constexpr (moe::codes::has_wide) {
      return WideUnit<Wide>{its_codes, its_scales};
    } else {
      return taken(its_codes, its_scales);
    }
  }

  MOE_INLINE auto at(Index u) const {
    const std::byte* const from = codes + u * (unit / 2);
    __builtin_prefetch(from + 8192);
    return unit_of(from, scales + u * (unit / group));
  }

  auto last(Index u, Index count) const {
    alignas(64) std::byte its_codes[unit / 2] = {}, its_scales[unit / group] = {};
    std::memcpy(its_codes, codes + u * (unit / 2), std::size_t(count) / 2);
    std::memcpy(its_scales, scales + u * (unit / group), std::size_t((count + group - 1) / group));
    return taken(its_codes, its_scales);
  }
};

inline constexpr IntegerForm mxfp4_integers = {32, false, take_mxfp4, kernels::register_products<Mxfp4Row>};

/// E2M3: a sign, 2 bits of exponent, 3 of mantissa; twice, as of E2M1.
inline void decode_mxfp6(const QuantizedMatrix& matrix, Index row, Index first, Index count, float* to) {
  constexpr auto numbers = [] {
    std::array<float, 64> twice{};
    for (int code = 0; code < 64; ++code) {
      const int exponent = code >> 3 & 3, mantissa = code & 7;
      const float size = exponent == 0 ? float(mantissa) / 4 : float((8 + mantissa) << (exponent - 1)) / 4;
      twice[std::size_t(code)] = code < 32 ? size : -size;
    }
    return twice;
  }();
  const std::byte *codes = matrix.codes.row(row), *scales = matrix.scales.row(row);
  each_group<32>(matrix.scales.cols_together, first, first + count, [&](Index group, Index at, auto size) {
    const float scale = half_scale(scales[group]);
    std::uint8_t code[32];
    for (Index i = 0; i < size; i += 32) {
      const Index some = std::min<Index>(32, size - i);
      unpack(codes + (at + i) * 6 / 8, 6, some, code);
      for (Index k = 0; k < some; ++k) to[at - first + i + k] = numbers[code[k]] * scale;
    }
  });
  round_all<bfloat16>(to, count);
}

}  // namespace detail

/// `codes` have the low four bits of a byte first: gpt-oss, compressed-tensors, DeepSeek-V4, MLX.
inline constexpr NumberFormat mxfp4 = {"MXFP4", 2, 4, detail::decode_mxfp4, false, &detail::mxfp4_integers};

/// `codes` of six bits lie one after the other, low bits first; rounded to bfloat16: compressed-tensors'.
inline constexpr NumberFormat mxfp6 = {"MXFP6 E2M3", 8, 6, detail::decode_mxfp6};

}  // namespace moe::inline MOE_TARGET
