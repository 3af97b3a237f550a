/// @file  IQ4_XS from numbers, which the library reads but does not write: for figures, not for files.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>

#include "moe/core/types.hpp"
#include "moe/formats/encode.hpp"
#include "moe/formats/encode_ggml.hpp"
#include "moe/formats/encode_number.hpp"
#include "moe/formats/ggml_lookup.hpp"

namespace moe::inline MOE_TARGET {

/// x = d · (s − 32) · one of IQ4_NL's 16 numbers: 8 parts with an s of 6 bits. Each part's scale is IQ4_NL's own,
/// rounded to a multiple of d.
template <>
struct Encoder<IQ4_XS> {
  static constexpr Index numbers = 256, bytes = 136;
  static void encode(const float* x, const float*, std::byte* block) {
    float scale[8], peak = 0;
    for (int part = 0; part < 8; ++part) {
      scale[part] = encoding::uneven_scale(x + 32 * part);
      if (std::fabs(scale[part]) > std::fabs(peak)) peak = scale[part];
    }
    const float d = encoding::from_half(encoding::to_half(peak / -32));
    unsigned low[4] = {}, high = 0;
    for (int part = 0; part < 8; ++part) {
      const int s = std::clamp(encoding::round_away(scale[part] * encoding::reciprocal(d)), -32, 31);
      const float inverse = encoding::reciprocal(d * float(s));
      std::uint8_t code[32];
      for (int j = 0; j < 32; ++j) code[j] = encoding::nearest_uneven(x[32 * part + j] * inverse);
      encoding::write_nibbles(block + 8 + 16 * part, code);
      low[part / 2] |= (unsigned(s + 32) & 15U) << 4 * (part % 2);
      high |= unsigned(s + 32) >> 4 << 2 * part;
    }
    encoding::write_half(block, d);
    for (int byte = 0; byte < 2; ++byte) block[2 + byte] = std::byte(high >> 8 * byte & 255U);
    for (int byte = 0; byte < 4; ++byte) block[4 + byte] = std::byte(low[byte]);
  }
};

}  // namespace moe::inline MOE_TARGET
