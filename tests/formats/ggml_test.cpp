/// @file  GGUF's types: as ggml decodes them, to the bit.
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "moe/core/quantized.hpp"
#include "moe/formats/ggml.hpp"
#include "moe/io/safetensors.hpp"
#include "quantized_blocks.hpp"
#include "random.hpp"

namespace moe {
namespace {

using Block = const std::uint8_t*;
using Bytes = std::vector<std::uint8_t>;
using Floats = std::vector<float>;

float value_of_half(unsigned code) {
  const unsigned exponent = code >> 10 & 31, mantissa = code & 1023;
  float x = std::ldexp(float(mantissa), -24);
  if (exponent > 0) x = std::ldexp(float(1024 + mantissa), int(exponent) - 25);
  if (exponent == 31) x = mantissa == 0 ? INFINITY : NAN;
  return code < 0x8000 ? x : -x;
}

float half(Block at) {
  static const Floats all = [] {
    Floats values;
    for (unsigned code = 0; code < 0x10000; ++code) values.push_back(value_of_half(code));
    return values;
  }();
  return all[at[0] + 256U * at[1]];
}

int bits(unsigned number, int first, int count) { return int(number >> first & ((1U << count) - 1)); }
int nibble(Block codes, int i) { return bits(codes[i % 16], i < 16 ? 0 : 4, 4); }
int fifth(Block high, int i) { return bits(high[i / 8], i % 8, 1) * 16; }
int quarter(Block codes, int i) { return bits(codes[i / 128 * 32 + i % 32], i / 32 % 4 * 2, 2); }

/// Scale g (or minimum, 8 + g) of Q4_K and Q5_K.
int six_bits(Block s, int g) {
  const Block low = g < 8 ? s : s + 4;
  const int i = g % 8;
  return i < 4 ? low[i] & 63 : bits(s[i + 4], g < 8 ? 0 : 4, 4) + (low[i - 4] >> 6) * 16;
}

const int iq4[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
const float e2m1[16] = {0, 0.5F, 1, 1.5F, 2, 3, 4, 6, 0, -0.5F, -1, -1.5F, -2, -3, -4, -6};

/// Number i of a block, by the formula of its type. Every product is exact in float, or rounded here as well.
using NaiveDecoder = float (*)(Block b, int i);

const std::map<std::string, NaiveDecoder> naive = {
    {"F32",
     [](Block b, int) { return std::bit_cast<float>(b[0] | b[1] << 8 | b[2] << 16 | int(unsigned(b[3]) << 24)); }},
    {"F16", [](Block b, int) { return half(b); }},
    {"BF16", [](Block b, int) { return std::bit_cast<float>(b[0] << 16 | int(unsigned(b[1]) << 24)); }},
    {"Q4_0", [](Block b, int i) { return half(b) * float(nibble(b + 2, i) - 8); }},
    {"Q4_1", [](Block b, int i) { return float(double(half(b)) * nibble(b + 4, i) + double(half(b + 2))); }},
    {"Q5_0", [](Block b, int i) { return half(b) * float(nibble(b + 6, i) + fifth(b + 2, i) - 16); }},
    {"Q5_1", [](Block b,
                int i) { return float(double(half(b)) * (nibble(b + 8, i) + fifth(b + 4, i)) + double(half(b + 2))); }},
    {"Q8_0", [](Block b, int i) { return half(b) * float(std::int8_t(b[2 + i])); }},
    {"Q2_K",
     [](Block b, int i) {
       const int s = b[i / 16];
       return float(double(half(b + 80)) * (s % 16) * quarter(b + 16, i) - double(half(b + 82)) * (s / 16));
     }},
    {"Q3_K",
     [](Block b, int i) {
       const int g = i / 16;
       const int s = bits(b[96 + g % 8], g / 8 * 4, 4) + bits(b[104 + g % 4], g / 4 * 2, 2) * 16 - 32;
       return half(b + 108) * float(s) * float(quarter(b + 32, i) + bits(b[i % 32], i / 32, 1) * 4 - 4);
     }},
    {"Q4_K",
     [](Block b, int i) {
       const int g = i / 32, code = bits(b[16 + i / 64 * 32 + i % 32], g % 2 * 4, 4);
       return float(double(half(b)) * six_bits(b + 4, g) * code - double(half(b + 2)) * six_bits(b + 4, 8 + g));
     }},
    {"Q5_K",
     [](Block b, int i) {
       const int g = i / 32;
       const int code = bits(b[48 + i / 64 * 32 + i % 32], g % 2 * 4, 4) + bits(b[16 + i % 32], g, 1) * 16;
       return float(double(half(b)) * six_bits(b + 4, g) * code - double(half(b + 2)) * six_bits(b + 4, 8 + g));
     }},
    {"Q6_K",
     [](Block b, int i) {
       const int low = bits(b[i / 128 * 64 + i % 64], i / 64 % 2 * 4, 4);
       const int high = bits(b[128 + i / 128 * 32 + i % 32], i / 32 % 4 * 2, 2);
       return half(b + 208) * float(std::int8_t(b[192 + i / 16])) * float(low + high * 16 - 32);
     }},
    {"IQ4_NL", [](Block b, int i) { return half(b) * float(iq4[nibble(b + 2, i)]); }},
    {"IQ4_XS",
     [](Block b, int i) {
       const int g = i / 32, s = bits(b[4 + g / 2], g % 2 * 4, 4) + bits(b[2 + g / 4], g % 4 * 2, 2) * 16 - 32;
       return half(b) * float(s) * float(iq4[nibble(b + 8 + g * 16, i % 32)]);
     }},
    {"MXFP4", [](Block b, int i) { return float(std::ldexp(double(e2m1[nibble(b + 1, i)]), b[0] - 127)); }},
    {"NVFP4",
     [](Block b, int i) {
       const int s = b[i / 16], mantissa = s % 8, exponent = s / 8 % 16;
       const float scale = std::ldexp(float(exponent > 0 ? mantissa + 8 : mantissa), std::max(exponent, 1) - 10);
       return (s == 127 ? 0 : scale) * e2m1[bits(b[4 + i / 16 * 8 + i % 8], i % 16 < 8 ? 0 : 4, 4)];
     }},
    {"TQ1_0",
     [](Block b, int i) {
       const Block codes = i < 160 ? b : i < 240 ? b + 32 : b + 48;
       const int at = i < 160 ? i : i < 240 ? i - 160 : i - 240, together = i < 160 ? 32 : i < 240 ? 16 : 4;
       int left = codes[at % together];
       for (int n = 0; n < at / together; ++n) left = left * 3 % 256;
       return half(b + 52) * float(left * 3 / 256 - 1);
     }},
    {"TQ2_0", [](Block b, int i) { return half(b + 64) * float(quarter(b, i) - 1); }},
    {"Q1_0", [](Block b, int i) { return bits(b[2 + i / 8], i % 8, 1) == 1 ? half(b) : -half(b); }},
    {"Q2_0", [](Block b, int i) { return half(b) * float(bits(b[2 + i / 4], i % 4 * 2, 2) - 1); }},
};

bool same(float a, float b) {
  return std::bit_cast<std::uint32_t>(a) == std::bit_cast<std::uint32_t>(b) || (std::isnan(a) && std::isnan(b));
}

void expect_same(const Floats& decoded, const float* expected, const std::string& what) {
  for (std::size_t i = 0; i < decoded.size(); ++i) {
    ASSERT_TRUE(same(decoded[i], expected[i]))
        << what << ": number " << i << " is " << decoded[i] << ", expected " << expected[i] << " of " << decoded.size();
  }
}

QuantizedMatrix matrix_of(const GgmlType& type, const Bytes& bytes, Index rows) {
  const Index row_bytes = Index(bytes.size()) / rows;
  const auto* const data = reinterpret_cast<const std::byte*>(bytes.data());
  return {*type.format, rows, row_bytes / type.bytes * type.numbers, {.data = data, .row_bytes = row_bytes}};
}

Floats decoded(const QuantizedMatrix& matrix) {
  Floats numbers(std::size_t(matrix.rows() * matrix.cols()));
  for (Index r = 0; r < matrix.rows(); ++r) matrix.decode(r, 0, matrix.cols(), numbers.data() + r * matrix.cols());
  return numbers;
}

Floats decoded_naively(const GgmlType& type, const Bytes& bytes) {
  const NaiveDecoder decode = naive.at(std::string(type.name));
  Floats numbers;
  for (std::size_t b = 0; b < bytes.size(); b += std::size_t(type.bytes)) {
    for (int i = 0; i < type.numbers; ++i) numbers.push_back(decode(bytes.data() + b, i));
  }
  return numbers;
}

Bytes random_bytes(Index count, unsigned seed) {
  test::Random random(seed);
  Bytes bytes;
  for (Index i = 0; i < count; ++i) bytes.push_back(std::uint8_t(random.below(256)));
  return bytes;
}

std::vector<GgmlType> decodable_types() {
  std::vector<GgmlType> types;
  for (const GgmlType& type : ggml_types) {
    if (type.format != nullptr) types.push_back(type);
  }
  return types;
}

/// Decodes <matrix>.<type>.bytes and compares with <matrix>.<type>.dequantized. Returns the types that were there.
std::set<std::string> expect_recorded_values(const std::filesystem::path& file) {
  const io::Tensors tensors = io::Tensors::open(file);
  std::set<std::string> types;
  for (const std::string& name : tensors.names()) {
    if (!name.ends_with(".bytes")) continue;
    const std::string stem = name.substr(0, name.rfind('.')), type_name = stem.substr(stem.rfind('.') + 1);
    const GgmlType* const type = find_ggml_type(type_name);
    if (type == nullptr) {
      ADD_FAILURE() << name << ": there is no type " << type_name;
      continue;
    }
    if (type->format == nullptr) {
      EXPECT_TRUE(type_name.starts_with("IQ1") || type_name.starts_with("IQ2") || type_name.starts_with("IQ3")) << name;
      continue;
    }
    const io::Tensor codes = tensors.at(name), numbers = tensors.at(stem + ".dequantized");
    const auto its_bytes = io::as<std::uint8_t>(codes);
    const Bytes bytes(its_bytes.begin(), its_bytes.end());
    EXPECT_EQ(codes.shape.at(1) / type->bytes * type->numbers, numbers.shape.at(1)) << name;
    expect_same(decoded(matrix_of(*type, bytes, codes.shape.at(0))), io::as<float>(numbers).data(), stem);
    types.insert(type_name);
  }
  return types;
}

/// The project's own, and that of the folder which MOE_QUANT_DIR names, if it has one of this family.
TEST(GgmlTypes, DecodeToWhatGgmlMakesOfThem) {
  const std::set<std::string> all = {"IQ4_NL", "IQ4_XS", "MXFP4", "NVFP4", "Q1_0", "Q2_0", "Q2_K", "Q3_K",  "Q4_0",
                                     "Q4_1",   "Q4_K",   "Q5_0",  "Q5_1",  "Q5_K", "Q6_K", "Q8_0", "TQ1_0", "TQ2_0"};
  EXPECT_EQ(expect_recorded_values(std::filesystem::path(MOE_SOURCE_DIR) / "tests/real_quant/ggml.safetensors"), all);
  const char* const named = std::getenv("MOE_QUANT_DIR");
  if (named == nullptr) return;
  ASSERT_TRUE(std::filesystem::is_directory(named) && !std::filesystem::is_empty(named))
      << "MOE_QUANT_DIR is " << named << ", which is not there, or empty";
  const auto file = std::filesystem::path(named) / "ggml.safetensors";
  if (!std::filesystem::exists(file)) return;
  EXPECT_FALSE(expect_recorded_values(file).empty());
}

TEST(GgmlTypes, AreTheirFormulasForFloat16OfEverySize) {
  // Where a block has its float16; the other one, of a minimum, takes the same values in another order.
  const std::map<std::string, std::vector<std::size_t>> halves = {
      {"F16", {0}},       {"Q4_0", {0}},   {"Q4_1", {0, 2}}, {"Q5_0", {0}},    {"Q5_1", {0, 2}}, {"Q8_0", {0}},
      {"Q2_K", {80, 82}}, {"Q3_K", {108}}, {"Q4_K", {0, 2}}, {"Q5_K", {0, 2}}, {"Q6_K", {208}},  {"IQ4_NL", {0}},
      {"IQ4_XS", {0}},    {"TQ1_0", {52}}, {"TQ2_0", {64}},  {"Q1_0", {0}},    {"Q2_0", {0}}};
  for (const auto& [name, places] : halves) {
    const GgmlType type = *find_ggml_type(name);
    const unsigned step = type.numbers == 256 ? 31 : 3;  // odd: 64 of them meet every low bit
    for (unsigned first = 0; first < 0x10000; first += 64 * step) {
      Bytes bytes = random_bytes(64 * type.bytes, 2001 + first);
      for (unsigned i = 0; i < 64; ++i) {
        for (std::size_t n = 0; n < places.size(); ++n) {
          const unsigned code = n == 0 ? first + i * step : (first + i * step) * 40503U + 0x7c00U;
          bytes[i * std::size_t(type.bytes) + places[n]] = std::uint8_t(code);
          bytes[i * std::size_t(type.bytes) + places[n] + 1] = std::uint8_t(code >> 8);
        }
      }
      expect_same(decoded(matrix_of(type, bytes, 2)), decoded_naively(type, bytes).data(), name);
      if (HasFatalFailure()) return;
    }
  }
}

TEST(GgmlTypes, AreTheirFormulasForEveryByteOfAScale) {
  for (const std::string name : {"MXFP4", "NVFP4"}) {
    const GgmlType type = *find_ggml_type(name);
    Bytes bytes = random_bytes(256 * type.bytes, 2002);
    for (unsigned i = 0; i < 256; ++i) {
      for (Index g = 0; g < (name == "NVFP4" ? 4 : 1); ++g) {
        bytes[std::size_t(i * type.bytes + g)] = std::uint8_t(i * unsigned(2 * g + 1));
      }
    }
    expect_same(decoded(matrix_of(type, bytes, 1)), decoded_naively(type, bytes).data(), name);
  }
}

TEST(GgmlTypes, AreTheirFormulasForInfiniteAndZeroScales) {
  for (const GgmlType& type : decodable_types()) {
    for (const std::uint16_t code : std::vector<std::uint16_t>{0, 0x8000, 1, 0x83ff, 0x7bff, 0x7c00, 0xfc00, 0x7e01}) {
      Bytes bytes = random_bytes(5 * type.bytes, 2003);
      for (std::size_t at = 0; at + 1 < bytes.size(); at += 2) {  // also, in turn, of codes and small scales
        if (Index(at) % type.bytes < 4 || Index(at) % type.bytes >= type.bytes - 4) std::memcpy(&bytes[at], &code, 2);
      }
      expect_same(decoded(matrix_of(type, bytes, 1)), decoded_naively(type, bytes).data(), std::string(type.name));
    }
  }
}

TEST(GgmlTypes, DecodeWhereverColumnsBeginAndEnd) {
  for (const GgmlType& type : decodable_types()) {
    SCOPED_TRACE(type.name);
    const Index n = type.numbers, rows = 3;
    const Bytes bytes = random_bytes(rows * 3 * type.bytes, 2004);
    const QuantizedMatrix matrix = matrix_of(type, bytes, rows);
    const Floats whole = decoded(matrix);
    const std::set<Index> offsets = {0, 1, 7, 8, 15, 16, 17, 31, 32, 33, n - 1, n, n + 1, 2 * n - 1, 2 * n, 3 * n};
    for (const Index first : offsets) {
      for (const Index end : offsets) {
        if (first > end || end > 3 * n) continue;
        const QuantizedMatrix some = matrix.middle_cols(first, end - first);
        ASSERT_EQ(some.cols(), end - first);
        for (Index row = 0; row < rows; ++row) {
          Floats numbers(std::size_t(end - first) + 1, 4711.F);
          some.decode(row, 0, end - first, numbers.data());
          ASSERT_EQ(numbers.back(), 4711.F) << "behind the numbers";
          numbers.pop_back();
          expect_same(numbers, whole.data() + row * 3 * n + first, "columns from " + std::to_string(first));
        }
      }
    }
  }
}

TEST(GgmlTypes, DecodeRowsOfOneBlock) {
  for (const GgmlType& type : decodable_types()) {
    const Bytes bytes = random_bytes(33 * type.bytes, 2005);
    expect_same(decoded(matrix_of(type, bytes, 33)), decoded_naively(type, bytes).data(), std::string(type.name));
  }
}

TEST(GgmlTypes, FloatsOneByOneAreThemselves) {
  for (const Index count : {0, 1, 3, 4, 5, 7, 8, 9, 15, 16, 17, 63}) {
    for (const std::string name : {"F32", "F16", "BF16"}) {
      const GgmlType type = *find_ggml_type(name);
      Bytes bytes = random_bytes(count * type.bytes + 1, 2006);
      bytes.erase(bytes.begin());
      expect_same(decoded(matrix_of(type, bytes, 1)), decoded_naively(type, bytes).data(), name);
    }
  }
}

/// A matrix of blocks may have a factor: of all its numbers, and of the scales and minima of its integers.
TEST(GgmlTypes, AreMultipliedByTheFactorOfTheirMatrix) {
  for (const GgmlType& type : ggml_types) {
    if (type.format == nullptr) continue;
    SCOPED_TRACE(type.name);
    const test::RandomBlocks blocks(type, 2, 512, /*seed=*/8);
    QuantizedMatrix twice = blocks.matrix;
    twice.factor = 0.3F;
    std::vector<float> once(512), is(512);
    blocks.matrix.decode(1, 0, 512, once.data());
    twice.decode(1, 0, 512, is.data());
    for (std::size_t i = 0; i < 512; ++i) {
      if (std::isfinite(once[i])) {
        ASSERT_EQ(is[i], once[i] * 0.3F) << i;
      }
    }
    if (twice.integers() == nullptr) continue;
    const std::size_t groups = std::size_t(512 / twice.integers()->group);
    std::vector<std::int8_t> code(512), same(512);
    std::vector<float> scale(groups), minimum(groups), its_scale(groups), its_minimum(groups);
    blocks.matrix.take(1, 0, 512, code.data(), scale.data(), minimum.data());
    twice.take(1, 0, 512, same.data(), its_scale.data(), its_minimum.data());
    EXPECT_EQ(same, code);
    for (std::size_t g = 0; g < groups; ++g) {
      ASSERT_EQ(its_scale[g], scale[g] * 0.3F) << g;
      ASSERT_EQ(its_minimum[g], minimum[g] * 0.3F) << g;
    }
  }
}

TEST(GgmlTypes, AreFoundByNumberAndByName) {
  std::set<std::uint32_t> numbers;
  std::set<std::string_view> names;
  for (const GgmlType& type : ggml_types) {
    EXPECT_TRUE(numbers.insert(type.number).second) << type.number;
    EXPECT_TRUE(names.insert(type.name).second) << type.name;
    EXPECT_EQ(find_ggml_type(type.number), &type);
    EXPECT_EQ(find_ggml_type(type.name), &type);
  }
  EXPECT_EQ(find_ggml_type(12U)->name, "Q4_K");
  EXPECT_EQ(find_ggml_type("MXFP4")->number, 39U);
  EXPECT_EQ(find_ggml_type(1000U), nullptr);
  EXPECT_EQ(find_ggml_type("Q4_k"), nullptr);
}

TEST(GgmlTypes, AreDecodedOrSayWhyNot) {
  for (const GgmlType& type : ggml_types) {
    EXPECT_EQ(type.format == nullptr, !type.reason.empty()) << type.name;
    if (type.format == nullptr) continue;
    EXPECT_EQ(type.format->name, type.name);
    EXPECT_EQ(type.format->block, type.numbers) << type.name;
    EXPECT_EQ(type.format->bits, 8.0 * double(type.bytes) / double(type.numbers)) << type.name;
    EXPECT_LE(type.numbers, NumberFormat::max_block) << type.name;
    EXPECT_TRUE(naive.contains(std::string(type.name))) << type.name;
  }
  for (const std::string_view lattice : {"IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S"}) {
    EXPECT_EQ(find_ggml_type(lattice)->format, nullptr) << lattice;
  }
}

TEST(GgmlTypes, AreInTheTableOfTheDocs) {
  std::ifstream file(std::filesystem::path(MOE_SOURCE_DIR) / "docs/formats.md");
  std::map<std::string, std::string> row_of;  // that begins with such a name
  for (std::string line; std::getline(file, line);) {
    if (!line.starts_with("| `")) continue;
    std::istringstream names(line.substr(2, line.find('|', 2) - 2));
    for (std::string name; names >> name;) row_of[name.substr(1, name.size() - 2)] = line;
  }
  for (const GgmlType& type : ggml_types) {
    if (type.format == nullptr && type.reason != codes::of_lattices) continue;
    const std::string name(type.name);
    ASSERT_TRUE(row_of.contains(name)) << name;
    std::ostringstream bits;
    bits.precision(8);
    if (type.format != nullptr) bits << type.format->bits;
    const std::string said = type.format == nullptr ? "refused" : bits.str();
    EXPECT_NE(row_of.at(name).find(said), std::string::npos) << name << ": " << said;
  }
}

}  // namespace
}  // namespace moe
