/// @file  GGUF's Q2_K … Q6_K, from numbers: blocks of 256 whose parts have scales, coded themselves.
///
/// The format leaves free which scales and codes are taken; these are searched for the least Σ importance · error². A
/// part of 16 or 32 numbers is fitted alone first, for a grid of scales, each followed by least squares. Then the codes
/// of scales and minima are chosen again beside the block's own scales, by the error that the decoded numbers have, and
/// the block's scales are fitted to all codes, in turns.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>

#include "moe/core/types.hpp"
#include "moe/formats/encode.hpp"
#include "moe/formats/encode_number.hpp"
#include "moe/formats/encode_search.hpp"
#include "moe/formats/ggml_k.hpp"

namespace moe::inline MOE_TARGET {

namespace encoding {

/// Do some numbers count more than others?
inline bool is_weighted(const float* w) { return w != all_alike.data(); }

/// Where the search of weighted numbers begins: at these shares of what the largest scale of a part makes of a block's,
/// for that part may count for little. With one alone Q2_K erred up to 1.9 times what it does without importance.
inline constexpr auto shares_with_minima =
    std::to_array<ScaleAndMinimum>({{1, 1}, {0.5F, 0.5F}, {0.2F, 0.2F}, {1, 0.3F}, {0.3F, 1}, {0.07F, 0.07F}});
inline constexpr auto shares = std::to_array<float>({1, 0.97F, 0.94F, 0.5F, 0.2F});

/// A block whose numbers are scale · code − minimum, in parts of n: block scale · its scale, block minimum · its
/// minimum.
template <int n, int last_code, int last_scale>
struct BlockWithMinima {
  static constexpr std::size_t parts = 256 / n;

  float scale = 0, minimum = 0;  // of the block, rounded to float16
  std::array<std::uint8_t, parts> scales{}, minima{};
  std::array<std::uint8_t, 256> codes{};

  /// @param w  (256)
  static BlockWithMinima of(const float* x, const float* w) {
    std::array<ScaleAndMinimum, parts> fitted;
    ScaleAndMinimum block;
    for (std::size_t p = 0; p < parts; ++p) {
      fitted[p] = fit(x + p * n, w + p * n);
      block.scale = std::max(block.scale, fitted[p].scale / last_scale);
      block.minimum = std::max(block.minimum, fitted[p].minimum / last_scale);
    }
    // Where some numbers count for little, so may the part whose scale is the largest: then less than that, too.
    BlockWithMinima best;
    float least = std::numeric_limits<float>::infinity();
    for (const ScaleAndMinimum& share :
         std::span(shares_with_minima).first(is_weighted(w) ? shares_with_minima.size() : 1)) {
      ScaleAndMinimum from{product(block.scale, share.scale), product(block.minimum, share.minimum)};
      float of_this = std::numeric_limits<float>::infinity();
      for (int round = 0; round < 4; ++round) {
        BlockWithMinima now;
        ScaleAndMinimum next;
        const float error = now.choose(x, w, from, fitted, next);
        if (!(error < of_this)) break;
        of_this = error;
        from = next;
        if (!(error < least)) continue;
        least = error;
        best = now;
      }
    }
    if (!is_weighted(w)) return best;
    const BlockWithMinima plain = of(x, all_alike.data());
    return plain.error(x, w) < best.error(x, w) ? plain : best;
  }

 private:
  /// Σ w · error².
  float error(const float* x, const float* w) const {
    float total = 0, code[n];
    for (std::size_t p = 0; p < parts; ++p) {
      std::copy_n(codes.begin() + std::ptrdiff_t(p * n), n, code);
      total += squared_error<n>(x + p * n, w + p * n, code, product(scale, float(scales[p])),
                                product(minimum, float(minima[p])));
    }
    return total;
  }

  /// Of n numbers alone.
  static ScaleAndMinimum fit(const float* x, const float* w) {
    float lowest = 0, highest = x[0];
    for (int i = 0; i < n; ++i) lowest = x[i] < lowest ? x[i] : lowest, highest = x[i] > highest ? x[i] : highest;
    ScaleAndMinimum best{0, -lowest};
    if (!(highest > lowest)) return best;
    float least = std::numeric_limits<float>::infinity();
    float code[n];
    const auto attempt = [&](float shift, float inverse) {
      find_codes<n>(x, shift, inverse, 0, last_code, code);
      const ScaleAndMinimum now = least_squares(moments<n>(x, w, code));
      const float error = squared_error<n>(x, w, code, now.scale, now.minimum);
      if (!(error < least)) return;
      least = error;
      best = now;
    };
    constexpr int steps = 16;
    for (int step = 0; step <= steps; ++step) {
      const float levels = float(last_code) - 0.75F + 2 * float(step) / steps;
      attempt(-lowest, levels / (highest - lowest));
    }
    for (int again = 0; again < 2; ++again) attempt(best.minimum, reciprocal(best.scale));
    return best;
  }

  static ScaleAndMinimum least_squares(const Moments& m) {
    const double determinant = difference_of_products(m.w, m.code_code, m.code, m.code);
    if (determinant > 0) {
      const double a = difference_of_products(m.w, m.code_x, m.x, m.code) / determinant;
      const double b = difference_of_products(m.code, m.code_x, m.code_code, m.x) / determinant;
      if (a > 0 && b >= 0) return {float(a), float(b)};
    }
    return {m.code_code > 0 && m.code_x > 0 ? float(m.code_x / m.code_code) : 0.0F, 0};
  }

  /// Scales, minima and codes of all parts beside the block's.
  /// @param next  the block's scale and minimum that fit these best
  /// @return the error
  float choose(const float* x, const float* w, const ScaleAndMinimum& block,
               const std::array<ScaleAndMinimum, parts>& fitted, ScaleAndMinimum& next) {
    scale = rounded_to_half(block.scale);
    minimum = rounded_to_half(block.minimum);
    float total = 0;
    double ss = 0, sm = 0, mm = 0, sx = 0, mx = 0;  // of scale · code and minimum
    for (std::size_t p = 0; p < parts; ++p) {
      const float *const its_x = x + p * n, *const its_w = w + p * n;
      const int s = nearest(fitted[p].scale, scale), m = nearest(fitted[p].minimum, minimum);
      float least = std::numeric_limits<float>::infinity(), code[n], best[n] = {};
      for (int i = std::max(s - 1, 0); i <= std::min(s + 1, last_scale); ++i) {
        for (int k = std::max(m - 1, 0); k <= std::min(m + 1, last_scale); ++k) {
          const float its_scale = product(scale, float(i)), its_minimum = product(minimum, float(k));
          find_codes<n>(its_x, its_minimum, reciprocal(its_scale), 0, last_code, code);
          const float error = squared_error<n>(its_x, its_w, code, its_scale, its_minimum);
          if (!(error < least)) continue;
          least = error;
          scales[p] = std::uint8_t(i);
          minima[p] = std::uint8_t(k);
          std::copy(code, code + n, best);
        }
      }
      total += least;
      for (int i = 0; i < n; ++i) codes[p * n + std::size_t(i)] = std::uint8_t(best[i]);
      const Moments its = moments<n>(its_x, its_w, best);
      const double its_scale = scales[p], its_minimum = minima[p];
      ss += product(its_scale * its_scale, its.code_code);
      sm += product(its_scale * its_minimum, its.code);
      mm += product(its_minimum * its_minimum, its.w);
      sx += product(its_scale, its.code_x);
      mx += product(its_minimum, its.x);
    }
    // The least Σ w · (x − a · scale · code + b · minimum)².
    next = block;
    const double determinant = difference_of_products(ss, mm, sm, sm);
    if (determinant > 0) {
      next = {float(difference_of_products(sx, mm, sm, mx) / determinant),
              float(difference_of_products(sm, sx, ss, mx) / determinant)};
    } else if (ss > 0) {
      next.scale = float(sx / ss);
    }
    if (!(next.scale > 0) || !(next.minimum >= 0)) next = block;
    return total;
  }

  static int nearest(float its, float of_block) {
    const float inverse = reciprocal(of_block);
    return int(std::min(product(its, inverse) + 0.5F, float(last_scale)));
  }
};

/// A block whose numbers are scale · code, in parts of 16: block scale · its scale, both with signs.
/// @tparam half_codes, half_scales  codes are −half … half − 1
template <int half_codes, int half_scales>
struct BlockOfScales {
  static constexpr int n = 16;
  static constexpr std::size_t parts = 16;
  static constexpr bool is_coarse = half_codes < 8;  // so that a scale a little off is another fit

  float scale = 0;  // of the block, rounded to float16
  std::array<std::int8_t, parts> scales{};
  std::array<std::int8_t, 256> codes{};

  /// @param w  (256)
  static BlockOfScales of(const float* x, const float* w) {
    std::array<float, parts> fitted;
    float peak = 0;
    for (std::size_t p = 0; p < parts; ++p) {
      fitted[p] = fit(x + p * n, w + p * n);
      if (std::fabs(fitted[p]) > std::fabs(peak)) peak = fitted[p];
    }
    BlockOfScales best;
    float least = std::numeric_limits<float>::infinity();
    for (const float share : std::span(shares).first(is_coarse && is_weighted(w) ? shares.size() : 1)) {
      for (const float whole : {float(-half_scales), float(half_scales - 1)}) {
        float block = product(peak / whole, share);
        float of_this = std::numeric_limits<float>::infinity();
        for (int round = 0; round < 4; ++round) {
          BlockOfScales now;
          const float error = now.choose(x, w, block, fitted);
          if (error < least) {
            least = error;
            best = now;
          }
          if (!(error < of_this)) break;
          of_this = error;
        }
      }
    }
    if (!is_weighted(w)) return best;
    const BlockOfScales plain = of(x, all_alike.data());
    return plain.error(x, w) < best.error(x, w) ? plain : best;
  }

 private:
  /// Σ w · error².
  float error(const float* x, const float* w) const {
    float total = 0, code[n];
    for (std::size_t p = 0; p < parts; ++p) {
      std::copy_n(codes.begin() + std::ptrdiff_t(p * n), n, code);
      total += squared_error<n>(x + p * n, w + p * n, code, product(scale, float(scales[p])), 0);
    }
    return total;
  }

  /// Of 16 numbers alone.
  static float fit(const float* x, const float* w) {
    float peak = 0;
    for (int i = 0; i < n; ++i) peak = std::fabs(x[i]) > std::fabs(peak) ? x[i] : peak;
    float best = 0, least = std::numeric_limits<float>::infinity(), code[n];
    const auto attempt = [&](float inverse) {
      if (inverse == 0) return;
      find_codes<n>(x, 0, inverse, -half_codes, half_codes - 1, code);
      const Moments its = moments<n>(x, w, code);
      const float now = its.code_code > 0 ? float(its.code_x / its.code_code) : 0.0F;
      const float error = squared_error<n>(x, w, code, now, 0);
      if (!(error < least)) return;
      least = error;
      best = now;
    };
    constexpr int steps = 16;
    for (int step = 0; step <= steps; ++step) {
      const float levels = float(half_codes) - 1.25F + 2 * float(step) / steps;
      attempt(-levels * reciprocal(peak));
      attempt((levels - 0.5F) * reciprocal(peak));
    }
    for (int again = 0; again < 2; ++again) attempt(reciprocal(best));
    return best;
  }

  /// Scales and codes of all parts beside the block's.
  /// @param block  becomes the scale that fits these best
  /// @return the error
  float choose(const float* x, const float* w, float& block, const std::array<float, parts>& fitted) {
    scale = rounded_to_half(block);
    const float inverse = reciprocal(scale);
    float total = 0;
    double ss = 0, sx = 0;
    for (std::size_t p = 0; p < parts; ++p) {
      const float *const its_x = x + p * n, *const its_w = w + p * n;
      const float place = std::clamp(product(fitted[p], inverse), float(-half_scales), float(half_scales - 1));
      const int s = round_away(place);
      float least = std::numeric_limits<float>::infinity(), code[n], best[n] = {};
      const int near = is_coarse && is_weighted(w) ? 6 : 2;
      for (int i = std::max(s - near, -half_scales); i <= std::min(s + near, half_scales - 1); ++i) {
        const float its_scale = product(scale, float(i));
        find_codes<n>(its_x, 0, reciprocal(its_scale), -half_codes, half_codes - 1, code);
        const float error = squared_error<n>(its_x, its_w, code, its_scale, 0);
        if (!(error < least)) continue;
        least = error;
        scales[p] = std::int8_t(i);
        std::copy(code, code + n, best);
      }
      total += least;
      for (int i = 0; i < n; ++i) codes[p * n + std::size_t(i)] = std::int8_t(best[i]);
      const Moments its = moments<n>(its_x, its_w, best);
      ss += product(double(scales[p]) * scales[p], its.code_code);
      sx += product(double(scales[p]), its.code_x);
    }
    if (ss > 0 && sx != 0) block = float(sx / ss);
    return total;
  }
};

/// 256 pairs of bits: number 128·a + 32·b + c at bits 2·b of byte 32·a + c.
template <class Codes>
void write_pairs(std::byte* to, const Codes& code) {
  for (std::size_t byte = 0; byte < 64; ++byte) {
    unsigned bits = 0;
    for (std::size_t b = 0; b < 4; ++b) bits |= (unsigned(code[byte / 32 * 128 + 32 * b + byte % 32]) & 3U) << 2 * b;
    to[byte] = std::byte(bits);
  }
}

/// 8 scales and 8 minima of 6 bits in 12 bytes: Q4_K, Q5_K.
inline void write_scales(std::byte* to, const std::array<std::uint8_t, 8>& s, const std::array<std::uint8_t, 8>& m) {
  for (std::size_t j = 0; j < 4; ++j) {
    to[j] = std::byte(s[j] | unsigned(s[j + 4] >> 4) << 6);
    to[j + 4] = std::byte(m[j] | unsigned(m[j + 4] >> 4) << 6);
    to[j + 8] = std::byte((s[j + 4] & 15U) | (m[j + 4] & 15U) << 4);
  }
}

/// 256 codes of 4 bits: number 64·a + 32·b + c in half b of byte 32·a + c.
inline void write_halves(std::byte* to, const std::array<std::uint8_t, 256>& code) {
  for (std::size_t byte = 0; byte < 128; ++byte) {
    const std::uint8_t* const two = code.data() + byte / 32 * 64 + byte % 32;
    to[byte] = std::byte((two[0] & 15U) | (two[32] & 15U) << 4);
  }
}

}  // namespace encoding

/// x = d · s · q − d' · m: 16 parts of s and m of 4 bits, q of 2.
template <>
struct Encoder<Q2_K> {
  static constexpr Index numbers = 256, bytes = 84;
  static constexpr bool weighs = true;
  static void encode(const float* x, const float* importance, std::byte* block) {
    const auto its = encoding::BlockWithMinima<16, 3, 15>::of(x, encoding::Importance<256>(importance, 16).w);
    for (std::size_t p = 0; p < 16; ++p) block[p] = std::byte(its.scales[p] | unsigned(its.minima[p]) << 4);
    encoding::write_pairs(block + 16, its.codes);
    encoding::write_half(block + 80, its.scale);
    encoding::write_half(block + 82, its.minimum);
  }
};

/// x = d · (s − 32) · (q − 4): 16 parts of s of 6 bits, q of 3.
template <>
struct Encoder<Q3_K> {
  static constexpr Index numbers = 256, bytes = 110;
  static constexpr bool weighs = true;
  static void encode(const float* x, const float* importance, std::byte* block) {
    const auto its = encoding::BlockOfScales<4, 32>::of(x, encoding::Importance<256>(importance, 16).w);
    for (std::size_t byte = 0; byte < 32; ++byte) {
      unsigned bits = 0;
      for (std::size_t b = 0; b < 8; ++b) bits |= (its.codes[32 * b + byte] >= 0 ? 1U : 0U) << b;
      block[byte] = std::byte(bits);
    }
    encoding::write_pairs(block + 32, its.codes);  // of q − 4 as of q
    const auto s = [&](std::size_t p) { return unsigned(its.scales[p] + 32); };
    for (std::size_t p = 0; p < 8; ++p) block[96 + p] = std::byte((s(p) & 15U) | (s(p + 8) & 15U) << 4);
    for (std::size_t p = 0; p < 4; ++p) {
      block[104 + p] = std::byte(s(p) >> 4 | (s(p + 4) >> 4) << 2 | (s(p + 8) >> 4) << 4 | (s(p + 12) >> 4) << 6);
    }
    encoding::write_half(block + 108, its.scale);
  }
};

/// x = d · s · q − d' · m: 8 parts of s and m of 6 bits, q of 4.
template <>
struct Encoder<Q4_K> {
  static constexpr Index numbers = 256, bytes = 144;
  static constexpr bool weighs = true;
  static void encode(const float* x, const float* importance, std::byte* block) {
    const auto its = encoding::BlockWithMinima<32, 15, 63>::of(x, encoding::Importance<256>(importance, 32).w);
    encoding::write_half(block, its.scale);
    encoding::write_half(block + 2, its.minimum);
    encoding::write_scales(block + 4, its.scales, its.minima);
    encoding::write_halves(block + 16, its.codes);
  }
};

/// x = d · s · q − d' · m: 8 parts of s and m of 6 bits, q of 5.
template <>
struct Encoder<Q5_K> {
  static constexpr Index numbers = 256, bytes = 176;
  static constexpr bool weighs = true;
  static void encode(const float* x, const float* importance, std::byte* block) {
    const auto its = encoding::BlockWithMinima<32, 31, 63>::of(x, encoding::Importance<256>(importance, 32).w);
    encoding::write_half(block, its.scale);
    encoding::write_half(block + 2, its.minimum);
    encoding::write_scales(block + 4, its.scales, its.minima);
    for (std::size_t byte = 0; byte < 32; ++byte) {
      unsigned bits = 0;
      for (std::size_t b = 0; b < 8; ++b) bits |= unsigned(its.codes[32 * b + byte] >> 4) << b;
      block[16 + byte] = std::byte(bits);
    }
    encoding::write_halves(block + 48, its.codes);
  }
};

/// x = d · s · (q − 32): 16 parts of s of 8 bits, q of 6.
template <>
struct Encoder<Q6_K> {
  static constexpr Index numbers = 256, bytes = 210;
  static constexpr bool weighs = true;
  static void encode(const float* x, const float* importance, std::byte* block) {
    const auto its = encoding::BlockOfScales<32, 128>::of(x, encoding::Importance<256>(importance, 16).w);
    const auto q = [&](std::size_t i) { return unsigned(its.codes[i] + 32); };
    for (std::size_t a = 0; a < 2; ++a) {
      for (std::size_t c = 0; c < 32; ++c) {
        const std::size_t i = 128 * a + c;
        block[64 * a + c] = std::byte((q(i) & 15U) | (q(i + 64) & 15U) << 4);
        block[64 * a + 32 + c] = std::byte((q(i + 32) & 15U) | (q(i + 96) & 15U) << 4);
        block[128 + 32 * a + c] =
            std::byte(q(i) >> 4 | (q(i + 32) >> 4) << 2 | (q(i + 64) >> 4) << 4 | (q(i + 96) >> 4) << 6);
      }
    }
    for (std::size_t p = 0; p < 16; ++p) block[192 + p] = std::byte(std::uint8_t(its.scales[p]));
    encoding::write_half(block + 208, its.scale);
  }
};

}  // namespace moe::inline MOE_TARGET
