/// @file  GGUF's blocks decoded number by number, as their formulas are written down: a twin that shares nothing.
#pragma once

#include <cmath>
#include <cstdint>
#include <functional>
#include <string>
#include <utility>
#include <vector>

namespace naive {

using Bytes = const std::uint8_t*;

inline double half(Bytes b) {
  const int bits = b[0] | b[1] << 8, exponent = bits >> 10 & 31, mantissa = bits & 1023;
  const double number = exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(1024 + mantissa, exponent - 25);
  return bits >> 15 ? -number : number;
}

/// A signed byte.
inline int integer(std::uint8_t byte) { return byte < 128 ? byte : byte - 256; }

inline int nibble(Bytes b, int i) { return i < 16 ? b[i] & 15 : b[i - 16] >> 4; }
inline int bit(Bytes b, int i) { return b[i / 8] >> i % 8 & 1; }

/// Bits 2i and 2i + 1 of where Q2_K and Q3_K have number i of 256.
inline int pair(Bytes b, int i) { return b[i / 128 * 32 + i % 32] >> i % 128 / 32 * 2 & 3; }

/// Scale and minimum, of 6 bits each, of eighth j: 12 bytes of Q4_K and Q5_K.
inline std::pair<int, int> scale_and_minimum(Bytes b, int j) {
  if (j < 4) return {b[j] & 63, b[j + 4] & 63};
  return {(b[j + 4] & 15) | b[j - 4] >> 6 << 4, b[j + 4] >> 4 | b[j] >> 6 << 4};
}

/// A format: numbers and bytes of a block, and number i of a block.
struct Blocks {
  int numbers, bytes;
  std::function<double(Bytes, int)> at;
};

inline const double twice_e2m1[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

inline Blocks blocks(const std::string& type) {
  if (type == "Q8_0") return {32, 34, [](Bytes b, int i) { return half(b) * integer(b[2 + i]); }};
  if (type == "Q4_0") return {32, 18, [](Bytes b, int i) { return half(b) * (nibble(b + 2, i) - 8); }};
  if (type == "Q4_1") return {32, 20, [](Bytes b, int i) { return half(b) * nibble(b + 4, i) + half(b + 2); }};
  if (type == "Q5_0") {
    return {32, 22, [](Bytes b, int i) { return half(b) * (nibble(b + 6, i) + 16 * bit(b + 2, i) - 16); }};
  }
  if (type == "Q5_1") {
    return {32, 24, [](Bytes b, int i) { return half(b) * (nibble(b + 8, i) + 16 * bit(b + 4, i)) + half(b + 2); }};
  }
  if (type == "IQ4_NL") {
    return {32, 18, [](Bytes b, int i) {
              const int value[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
              return half(b) * value[nibble(b + 2, i)];
            }};
  }
  if (type == "MXFP4") {
    return {32, 17, [](Bytes b, int i) { return std::ldexp(twice_e2m1[nibble(b + 1, i)], b[0] - 128); }};
  }
  if (type == "NVFP4") {
    return {64, 36, [](Bytes b, int i) {
              const int scale = b[i / 16] & 127, j = i % 16;
              const std::uint8_t byte = b[4 + i / 16 * 8 + j % 8];
              const double number = scale < 8 ? std::ldexp(scale, -9) : std::ldexp(8 + scale % 8, scale / 8 - 10);
              return (scale == 127 ? 0 : number) * twice_e2m1[j < 8 ? byte & 15 : byte >> 4] / 2;
            }};
  }
  if (type == "TQ2_0") {
    return {256, 66, [](Bytes b, int i) { return half(b + 64) * (pair(b, i) - 1); }};
  }
  if (type == "TQ1_0") {
    return {256, 54, [](Bytes b, int i) {
              const int byte = i < 160 ? i % 32 : i < 240 ? 32 + (i - 160) % 16 : 48 + (i - 240) % 4;
              const int digit = i < 160 ? i / 32 : i < 240 ? (i - 160) / 16 : (i - 240) / 4;
              const int power[5] = {1, 3, 9, 27, 81};
              return half(b + 52) * ((b[byte] * power[digit] % 256 * 3 >> 8) - 1);
            }};
  }
  if (type == "Q2_K") {
    return {256, 84, [](Bytes b, int i) {
              return half(b + 80) * (b[i / 16] & 15) * pair(b + 16, i) - half(b + 82) * (b[i / 16] >> 4);
            }};
  }
  if (type == "Q3_K") {
    return {256, 110, [](Bytes b, int i) {
              const int j = i / 16, low = j < 8 ? b[96 + j] & 15 : b[96 + j - 8] >> 4;
              const int scale = (low | (b[104 + j % 4] >> j / 4 * 2 & 3) << 4) - 32;
              return half(b + 108) * scale * (pair(b + 32, i) - (b[i % 32] >> i / 32 & 1 ? 0 : 4));
            }};
  }
  if (type == "Q4_K") {
    return {256, 144, [](Bytes b, int i) {
              const auto [scale, minimum] = scale_and_minimum(b + 4, i / 32);
              const int byte = b[16 + i / 64 * 32 + i % 32];
              return half(b) * scale * (i / 32 % 2 ? byte >> 4 : byte & 15) - half(b + 2) * minimum;
            }};
  }
  if (type == "Q5_K") {
    return {256, 176, [](Bytes b, int i) {
              const auto [scale, minimum] = scale_and_minimum(b + 4, i / 32);
              const int byte = b[48 + i / 64 * 32 + i % 32], high = b[16 + i % 32] >> i / 32 & 1;
              return half(b) * scale * ((i / 32 % 2 ? byte >> 4 : byte & 15) + 16 * high) - half(b + 2) * minimum;
            }};
  }
  if (type == "Q6_K") {
    return {256, 210, [](Bytes b, int i) {
              const int part = i % 128 / 32, byte = b[i / 128 * 64 + part % 2 * 32 + i % 32];
              const int high = b[128 + i / 128 * 32 + i % 32] >> part * 2 & 3;
              return half(b + 208) * integer(b[192 + i / 16]) * (((part < 2 ? byte & 15 : byte >> 4) | high << 4) - 32);
            }};
  }
  return {};
}

/// All numbers of bytes.
inline std::vector<double> decode(const std::string& type, Bytes bytes, std::size_t size) {
  const Blocks its = blocks(type);
  std::vector<double> numbers;
  for (std::size_t at = 0; at < size; at += std::size_t(its.bytes))
    for (int i = 0; i < its.numbers; ++i) numbers.push_back(its.at(bytes + at, i));
  return numbers;
}

}  // namespace naive
