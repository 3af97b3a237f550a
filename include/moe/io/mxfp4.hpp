/// @file  Expands 4-bit weights in MXFP4.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <span>

#include "moe/core/types.hpp"

namespace moe::inline MOE_TARGET::io {

inline constexpr Index mxfp4_group = 32;  // numbers that share a scale

/// Row by row, groups of 32 numbers: 16 bytes of two codes each, the low four bits first, with one scale. A code is a
/// sign and one of 0, ½, 1, 1½, 2, 3, 4, 6; a scale s stands for 2^(s − 127), or NaN if it is 255. Exact in bfloat16.
/// Open Compute Project 2023, "Microscaling Formats (MX)", §5.3.3, §5.4.1.
/// @param blocks  rows · cols / 2 bytes
/// @param scales  rows · cols / 32 bytes
/// @param to      (rows × cols), cols a multiple of 32
template <class W>
void expand_mxfp4(std::span<const std::uint8_t> blocks, std::span<const std::uint8_t> scales,
                  Eigen::Map<Weight<W>, 0, Eigen::OuterStride<>> to) {
  constexpr float magnitude[8] = {0, 0.5F, 1, 1.5F, 2, 3, 4, 6};
  eigen_assert(Index(blocks.size()) == to.size() / 2 && Index(scales.size()) == to.size() / mxfp4_group);
  for (Index r = 0; r < to.rows(); ++r) {
    for (Index c = 0; c < to.cols(); ++c) {
      const Index at = r * to.cols() + c;
      const unsigned code = (blocks[std::size_t(at / 2)] >> (at % 2 == 0 ? 0 : 4)) & 15U;
      const int scale = scales[std::size_t(at / mxfp4_group)];
      const float size = scale == 255 ? std::numeric_limits<float>::quiet_NaN() : magnitude[code & 7U];
      to(r, c) = static_cast<W>(std::ldexp(code < 8 ? size : -size, scale - 127));
    }
  }
}

}  // namespace moe::inline MOE_TARGET::io
