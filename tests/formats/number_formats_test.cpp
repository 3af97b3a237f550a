/// @file  Decoders of formats of safetensors against what their definitions say of each code and scale.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "moe/formats/affine.hpp"
#include "moe/formats/bitsandbytes.hpp"
#include "moe/formats/fp8.hpp"
#include "moe/formats/integers.hpp"
#include "moe/formats/mx.hpp"
#include "moe/formats/nvfp4.hpp"
#include "moe/formats/repack.hpp"
#include "moe/kernels/rounding.hpp"

namespace {

using namespace moe;
using Bytes = std::vector<std::byte>;

constexpr float infinity = std::numeric_limits<float>::infinity(), nan = std::numeric_limits<float>::quiet_NaN();

/// Equal bits, of numbers; any NaN is one.
testing::AssertionResult same(float a, float b) {
  std::uint32_t bits_a, bits_b;
  std::memcpy(&bits_a, &a, 4);
  std::memcpy(&bits_b, &b, 4);
  if (bits_a == bits_b || (std::isnan(a) && std::isnan(b))) return testing::AssertionSuccess();
  return testing::AssertionFailure() << std::hexfloat << a << " is not " << b;
}

/// A number with this much exponent and mantissa, from its code: by division, in double.
double naive(unsigned code, int exponent_bits, int mantissa_bits, int bias) {
  const unsigned mantissa = code & ((1U << mantissa_bits) - 1);
  const int exponent = int(code >> mantissa_bits & ((1U << exponent_bits) - 1));
  const double size = exponent == 0 ? std::ldexp(mantissa, 1 - bias - mantissa_bits)
                                    : std::ldexp((1U << mantissa_bits) + mantissa, exponent - bias - mantissa_bits);
  return code >> (exponent_bits + mantissa_bits) & 1 ? -size : size;
}
double naive_e4m3(unsigned code) { return (code & 127) == 127 ? nan : naive(code, 4, 3, 7); }

template <class T>
float rounded(double number) {
  return static_cast<float>(T(static_cast<float>(number)));
}

template <class T>
Bytes bytes_of(const std::vector<T>& values) {
  Bytes bytes(values.size() * sizeof(T));
  std::memcpy(bytes.data(), values.data(), bytes.size());
  return bytes;
}

std::vector<float> decoded(const QuantizedMatrix& matrix, Index row = 0) {
  std::vector<float> numbers(std::size_t(matrix.cols()));
  matrix.decode(row, 0, matrix.cols(), numbers.data());
  return numbers;
}

Bytes all_bytes() {
  Bytes all(256);
  for (std::size_t i = 0; i < all.size(); ++i) all[i] = std::byte(i);
  return all;
}

const std::vector<float> scales = {1,     -1,        0.37F,     1.9e-5F,   0,         -0.F,       448,
                                   3e38F, 1e-38F,    1e-40F,    0x1p119F,  -0x1p120F, 0x1.8p127F, infinity,
                                   nan,   -infinity, 0x1p-126F, 0x1p-149F, 0.0078125F};

TEST(NumberFormats, EveryCodeOfFp8TimesAnyScale) {
  const Bytes codes = all_bytes();
  for (const float scale : scales) {
    const Bytes one = bytes_of(std::vector<float>{scale});
    const auto numbers = decoded({fp8<float>, 1, 256, {codes.data(), 256}, {one.data(), 0, 1, 256}});
    for (unsigned code = 0; code < 256; ++code) {
      ASSERT_TRUE(same(numbers[code], float(naive_e4m3(code)) * scale)) << code << " times " << scale;
    }
    const bfloat16 short_scale(scale);
    const Bytes two = bytes_of(std::vector<bfloat16>{short_scale});
    const auto rounded_numbers =
        decoded({fp8<bfloat16, bfloat16>, 1, 256, {codes.data(), 256}, {two.data(), 0, 1, 256}});
    for (unsigned code = 0; code < 256; ++code) {
      const float product = float(naive_e4m3(code)) * float(short_scale);
      ASSERT_TRUE(same(rounded_numbers[code], rounded<bfloat16>(product))) << code << " times " << short_scale;
    }
  }
}

TEST(NumberFormats, EveryCodeOfMxTimesEveryScale) {
  Bytes codes = all_bytes();
  for (unsigned exponent = 0; exponent < 256; ++exponent) {
    const Bytes one = {std::byte(exponent)};
    const double scale = std::ldexp(1.0, int(exponent) - 127);
    const auto eight = decoded({mxfp8, 1, 256, {codes.data(), 256}, {one.data(), 0, 1, 256}});
    const auto six = decoded({mxfp6, 1, 340, {codes.data(), 256}, {one.data(), 0, 1, 340}});
    const auto four = decoded({mxfp4, 1, 512, {codes.data(), 256}, {one.data(), 0, 1, 512}});
    for (unsigned code = 0; code < 256; ++code) {
      // 2^128 is infinite in float, and zero times it NaN
      const double product = exponent == 255 ? double(float(naive_e4m3(code)) * infinity) : naive_e4m3(code) * scale;
      ASSERT_TRUE(same(eight[code], rounded<bfloat16>(product))) << "MXFP8 " << code << ' ' << exponent;
      for (unsigned k = 0; k < 2; ++k) {
        const double e2m1 = naive(code >> (4 * k) & 15, 2, 1, 1);
        ASSERT_TRUE(same(four[2 * code + k], float(e2m1 * scale))) << "MXFP4 " << code << ' ' << exponent;
      }
    }
    for (std::size_t i = 0; i < six.size(); ++i) {
      unsigned code = 0;
      for (std::size_t bit = 0; bit < 6; ++bit) {
        const std::size_t at = 6 * i + bit;
        code |= (unsigned(codes[at / 8]) >> (at % 8) & 1U) << bit;
      }
      ASSERT_TRUE(same(six[i], rounded<bfloat16>(naive(code, 2, 3, 1) * scale))) << "MXFP6 " << code << ' ' << exponent;
    }
  }
}

TEST(NumberFormats, EveryCodeOfNvfp4TimesEveryScale) {
  Bytes codes(8);
  for (unsigned k = 0; k < 8; ++k) codes[k] = std::byte(2 * k | (2 * k + 1) << 4);
  for (const float factor : {1.F, 2688.F, 0.013F, 3e38F, 1e-38F}) {
    for (unsigned byte = 0; byte < 256; ++byte) {
      const Bytes one = {std::byte(byte)};
      const float scale = float(naive_e4m3(byte));
      const BytePlane code_plane{codes.data(), 8}, scale_plane{one.data(), 1, 1, 16};
      const auto numbers = [&](const NumberFormat& format) {
        return decoded({format, 1, 16, code_plane, scale_plane, {}, factor});
      };
      const auto divided = numbers(nvfp4<GlobalScale::divides, bfloat16>);
      const auto multiplied = numbers(nvfp4<GlobalScale::multiplies, float>);
      const auto alone = numbers(nvfp4<GlobalScale::none, bfloat16>);
      for (unsigned code = 0; code < 16; ++code) {
        const auto e2m1 = float(naive(code, 2, 1, 1));
        ASSERT_TRUE(same(divided[code], rounded<bfloat16>(e2m1 * (scale / factor)))) << code << ' ' << byte;
        ASSERT_TRUE(same(multiplied[code], (code == 8 ? 0.F : e2m1) * (scale * factor))) << code << ' ' << byte;
        ASSERT_TRUE(same(alone[code], rounded<bfloat16>(e2m1 * scale))) << code << ' ' << byte;
      }
    }
  }
}

template <class T>
void expect_rounds_as_eigen() {
  std::mt19937 random(11);
  std::vector<float> numbers;
  for (unsigned i = 0; i < 65536; ++i) {  // every number of 16 bits, what is next to it, and halfway to the next
    T number;
    const auto bits = std::uint16_t(i);
    std::memcpy(static_cast<void*>(&number), &bits, sizeof bits);
    const auto it = static_cast<float>(number);
    T next;
    const auto next_bits = std::uint16_t(i + 1);
    std::memcpy(static_cast<void*>(&next), &next_bits, sizeof next_bits);
    const float middle = it / 2 + static_cast<float>(next) / 2;
    for (const float center : {it, middle}) {
      for (const float one : {center, std::nextafter(center, infinity), std::nextafter(center, -infinity)}) {
        numbers.push_back(one);
      }
    }
  }
  for (int i = 0; i < 100'000; ++i) {
    const auto bits = std::uint32_t(random());
    float number;
    std::memcpy(&number, &bits, sizeof bits);
    numbers.push_back(number);
  }
  constexpr std::size_t step = std::size_t(kernels::lanes<float>);
  numbers.resize(numbers.size() / step * step);
  for (std::size_t i = 0; i < numbers.size(); i += step) {
    float by_us[step];
    kernels::store(by_us, kernels::rounded_to<T>(kernels::load_as<kernels::Lanes<float>>(numbers.data() + i)));
    for (std::size_t k = 0; k < step; ++k) {
      ASSERT_TRUE(same(by_us[k], static_cast<float>(T(numbers[i + k])))) << std::hexfloat << numbers[i + k];
    }
  }
}

TEST(NumberFormats, RoundsAsEigenDoes) {
  expect_rounds_as_eigen<bfloat16>();
  expect_rounds_as_eigen<float16>();
}

TEST(NumberFormats, ZeroPointsOfGptqBorrowAcrossAWord) {
  for (const int bits : {2, 4, 8}) {
    const unsigned mask = (1U << bits) - 1;
    std::mt19937 random(13);
    const Index rows = 64, groups = 3;
    std::vector<std::uint32_t> stored(std::size_t(groups * rows * bits / 32));
    std::vector<unsigned> zeros(std::size_t(groups * rows));
    for (Index g = 0; g < groups; ++g) {
      for (Index w = 0; w < rows * bits / 32; ++w) {
        std::uint32_t word = 0, ones = 0;
        for (int k = 0; k < 32 / bits; ++k) {
          const unsigned zero = random() % 3 == 0 ? 0 : unsigned(random()) & mask;
          zeros[std::size_t(g * rows + w * 32 / bits + k)] = zero;
          word |= zero << (k * bits);
          ones |= 1U << (k * bits);
        }
        stored[std::size_t(g * rows * bits / 32 + w)] = word - ones;  // as version 1 is written
      }
    }
    Bytes bytes(std::size_t(groups * rows));
    zeros_of_gptq(bytes_of(stored).data(), groups, rows, bits, true, bytes.data());
    for (Index g = 0; g < groups; ++g) {
      for (Index r = 0; r < rows; ++r) {
        ASSERT_EQ(unsigned(bytes[std::size_t(r * groups + g)]), zeros[std::size_t(g * rows + r)]) << bits << " bits";
      }
    }
  }
}

TEST(NumberFormats, TurnedIsTheTranspose) {
  for (const Index rows : {1, 2, 15, 16, 17, 40}) {
    for (const Index cols : {1, 3, 16, 33}) {
      std::vector<std::uint32_t> numbers(std::size_t(rows * cols));
      for (std::size_t i = 0; i < numbers.size(); ++i) numbers[i] = std::uint32_t(i);
      Bytes bytes(numbers.size() * 4);
      turn<4>(bytes_of(numbers).data(), rows, cols, bytes.data());
      for (Index r = 0; r < rows; ++r) {
        for (Index c = 0; c < cols; ++c) {
          ASSERT_EQ(kernels::load_as<std::uint32_t>(bytes.data() + 4 * (c * rows + r)),
                    numbers[std::size_t(r * cols + c)]);
        }
      }
    }
  }
}

/// Blocks that go on where a row ends, and rows that begin within a byte.
TEST(NumberFormats, BlocksOfBitsAndBytesMayCrossRows) {
  std::mt19937 random(17);
  std::vector<float> table(16);
  for (float& number : table) number = float(int(random() % 200) - 100) / 64;
  for (const Index cols : {1, 3, 31, 32, 37, 64, 100}) {
    const Index rows = 7, block = 32, blocks = (rows * cols + block - 1) / block;
    Bytes codes(std::size_t((rows * cols + 1) / 2));
    for (auto& byte : codes) byte = std::byte(random());
    std::vector<float> sizes(static_cast<std::size_t>(blocks));
    for (float& size : sizes) size = float(random() % 1000) * 0.013F;
    const Bytes its_sizes = bytes_of(sizes), its_table = bytes_of(table);
    const QuantizedMatrix matrix(table4<bfloat16>, rows, cols, {codes.data(), cols / 2},
                                 {its_sizes.data(), 0, 1, block}, {its_table.data()});
    for (Index r = 0; r < rows; ++r) {
      for (const Index first : {Index(0), cols / 2, cols - 1}) {
        std::vector<float> row(std::size_t(cols - first));
        matrix.decode(r, first, cols - first, row.data());
        for (Index c = first; c < cols; ++c) {
          const Index at = r * cols + c;
          const unsigned code = unsigned(codes[std::size_t(at / 2)]) >> (at % 2 == 0 ? 4 : 0) & 15U;
          ASSERT_EQ(row[std::size_t(c - first)], rounded<bfloat16>(table[code] * sizes[std::size_t(at / block)]))
              << cols << " columns, row " << r << ", " << c;
        }
      }
    }
  }
}

/// scale · q and + bias round each by itself: fused, some of these differ.
TEST(NumberFormats, AffineRoundsTwice) {
  std::mt19937 random(19);
  Index fused_differs = 0;
  for (int i = 0; i < 200; ++i) {
    const float scale = float(int(random() % 20001) - 10000) / 65537, bias = -scale * float(random() % 256);
    const Bytes its_scale = bytes_of(std::vector<float>{scale}), its_bias = bytes_of(std::vector<float>{bias});
    const Bytes codes = all_bytes();
    const BytePlane scale_plane{its_scale.data(), 4, 1, 512}, bias_plane{its_bias.data(), 4, 1, 512};
    const auto eight = decoded({affine<8, float>, 1, 256, {codes.data(), 256}, scale_plane, bias_plane});
    const auto four = decoded({affine<4, float>, 1, 512, {codes.data(), 256}, scale_plane, bias_plane});
    for (unsigned code = 0; code < 256; ++code) {
      volatile float product = float(code) * scale;  // rounded
      ASSERT_EQ(eight[code], product + bias) << scale << ' ' << code;
      fused_differs += eight[code] != std::fma(float(code), scale, bias);
      volatile float low = float(code & 15) * scale, high = float(code >> 4) * scale;
      ASSERT_EQ(four[2 * code], low + bias);
      ASSERT_EQ(four[2 * code + 1], high + bias);
    }
  }
  EXPECT_GT(fused_differs, 1000);
}

}  // namespace
