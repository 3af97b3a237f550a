/// @file  Quantisers, against the bytes that the formats' own software wrote.
#include <moe/formats/encode_ggml.hpp>
#include <moe/formats/encode_k.hpp>
#include <moe/formats/encode_safetensors.hpp>
#include <moe/io/safetensors.hpp>

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "naive_blocks.hpp"

namespace {

using moe::Index;

const moe::io::Tensors& stored() {
  static const auto tensors =
      moe::io::Tensors::open(std::filesystem::path(MOE_SOURCE_DIR) / "tests/real_quant/quantise.safetensors");
  return tensors;
}

struct Matrix {
  Index rows, cols;
  std::vector<float> numbers;
};

Matrix original(const std::string& name) {
  const auto tensor = stored().at(name + ".original");
  const auto numbers = moe::io::read<float>(tensor);
  return {numbers.rows(), numbers.cols(), {numbers.data(), numbers.data() + numbers.size()}};
}

template <class Block>
std::vector<std::uint8_t> encoded(const Matrix& matrix) {
  std::vector<std::uint8_t> bytes(matrix.numbers.size() / std::size_t(moe::Encoder<Block>::numbers) *
                                  std::size_t(moe::Encoder<Block>::bytes));
  moe::encode<Block>(matrix.numbers.data(), Index(matrix.numbers.size()), reinterpret_cast<std::byte*>(bytes.data()));
  return bytes;
}

template <class Block>
void expect_bytes(const std::string& type) {
  for (const std::string name : {"ggml.normal", "ggml.heavy", "ggml.zeros", "ggml.edges"}) {
    const auto tensor = stored().at(name + "." + type + ".bytes");
    const auto expected = moe::io::as<std::uint8_t>(tensor);
    const auto got = encoded<Block>(original(name));
    ASSERT_EQ(got.size(), expected.size());
    std::size_t off = 0, first = got.size();
    for (std::size_t i = 0; i < got.size(); ++i) {
      if (got[i] == expected[i]) continue;
      ++off;
      first = std::min(first, i);
    }
    EXPECT_EQ(off, 0u) << name << " " << type << ": bytes of " << got.size() << " that differ, the first at " << first;
  }
}

TEST(Encode, GgmlsBytes) {
  expect_bytes<moe::Q8_0>("Q8_0");
  expect_bytes<moe::Q4_0>("Q4_0");
  expect_bytes<moe::Q4_1>("Q4_1");
  expect_bytes<moe::Q5_0>("Q5_0");
  expect_bytes<moe::Q5_1>("Q5_1");
  expect_bytes<moe::GgmlMxfp4>("MXFP4");
  expect_bytes<moe::GgmlNvfp4>("NVFP4");
  expect_bytes<moe::TQ1_0>("TQ1_0");
  expect_bytes<moe::TQ2_0>("TQ2_0");
  expect_bytes<moe::IQ4_NL>("IQ4_NL");
}

/// How many of these bytes are not as stored, a sentence.
std::string difference(const std::string& name, std::span<const std::byte> got) {
  const auto expected = stored().at(name).bytes;
  if (got.size() != expected.size())
    return std::to_string(got.size()) + " bytes, expected " + std::to_string(expected.size());
  std::size_t off = 0, first = got.size();
  for (std::size_t i = 0; i < got.size(); ++i) {
    if (got[i] == expected[i]) continue;
    first = std::min(first, i);
    ++off;
  }
  return off == 0 ? ""
                  : std::to_string(off) + " of " + std::to_string(got.size()) + " bytes differ, the first at " +
                        std::to_string(first);
}

template <class T>
std::string difference(const std::string& name, const std::vector<T>& got) {
  return difference(name, std::as_bytes(std::span(got)));
}

/// The scale as W has it.
template <class W>
W to(float scale) {
  return static_cast<W>(scale);
}

void expect_fp8(const std::string& matrix, Index block_rows, Index block_cols, const std::string& scheme) {
  const auto tensor = stored().at("transformers_fp8." + matrix + ".original");
  const auto numbers = moe::io::as<float>(tensor);
  const Index cols = tensor.shape.back(), rows = tensor.shape[tensor.shape.size() - 2];
  std::vector<std::uint8_t> codes(numbers.size());
  std::vector<float> scales;
  for (Index m = 0; m < std::ssize(numbers); m += rows * cols)
    for (Index r = 0; r < rows; r += block_rows)
      for (Index c = 0; c < cols; c += block_cols)
        scales.push_back(moe::encoding::encode_fp8(&numbers[std::size_t(m + r * cols + c)], block_rows, block_cols,
                                                   cols, &codes[std::size_t(m + r * cols + c)]));
  const std::string name = "transformers_fp8." + matrix + "." + scheme;
  EXPECT_EQ(difference(name + ".weight", codes), "") << name;
  EXPECT_EQ(difference(name + ".weight_scale_inv", scales), "") << name;
}

TEST(Encode, TransformersFp8) {
  for (const std::string matrix : {"normal", "heavy", "zeros", "edges", "experts"})
    expect_fp8(matrix, 128, 128, "float_128x128");
  expect_fp8("experts", 64, 32, "float_64x32");
  expect_fp8("normal", 128, 128, "float_tensor");
}

template <class W>
void expect_compressed_tensors(const std::string& matrix) {
  const std::string name = "compressed_tensors." + matrix;
  const Matrix x = original(name);
  ASSERT_EQ(stored().at(name + ".original").dtype, moe::io::dtype_name<W>);
  const Index size = std::ssize(x.numbers);
  std::vector<std::byte> packed(std::size_t(size / 2));
  const auto at = [&](Index i) { return x.numbers.data() + i; };
  for (const Index group : {32, 128}) {
    std::vector<W> scales;
    for (Index i = 0; i < size; i += group) {
      std::uint8_t code[128];
      scales.push_back(to<W>(moe::encoding::encode_int4<W>(at(i), group, code)));
      moe::encoding::write_nibbles_in_turn(&packed[std::size_t(i / 2)], code, group);
    }
    const std::string scheme = name + ".int4_g" + std::to_string(group);
    EXPECT_EQ(difference(scheme + ".weight_packed", packed), "") << scheme;
    EXPECT_EQ(difference(scheme + ".weight_scale", scales), "") << scheme;
  }
  std::vector<std::uint8_t> exponents, scales;
  for (Index i = 0; i < size; i += 32) {
    std::uint8_t code[32];
    exponents.push_back(moe::encoding::encode_mxfp4(at(i), code));
    moe::encoding::write_nibbles_in_turn(&packed[std::size_t(i / 2)], code, 32);
  }
  EXPECT_EQ(difference(name + ".mxfp4.weight_packed", packed), "") << name;
  EXPECT_EQ(difference(name + ".mxfp4.weight_scale", exponents), "") << name;
  const float global = moe::encoding::nvfp4_global_scale(moe::encoding::largest_magnitude(at(0), 1, size, size));
  for (Index i = 0; i < size; i += 16) {
    std::uint8_t code[16];
    scales.push_back(moe::encoding::encode_nvfp4<W>(at(i), global, code));
    moe::encoding::write_nibbles_in_turn(&packed[std::size_t(i / 2)], code, 16);
  }
  EXPECT_EQ(difference(name + ".nvfp4.weight_global_scale", std::vector<float>{global}), "") << name;
  EXPECT_EQ(difference(name + ".nvfp4.weight_scale", scales), "") << name;
  EXPECT_EQ(difference(name + ".nvfp4.weight_packed", packed), "") << name;
}

TEST(Encode, CompressedTensors) {
  for (const std::string matrix : {"normal", "heavy", "zeros", "edges"}) expect_compressed_tensors<float>(matrix);
  expect_compressed_tensors<moe::bfloat16>("bf16");
}

/// ‖decoded − x‖ / ‖x‖, each square times its column's importance.
double relative_error(const std::string& type, std::span<const std::uint8_t> bytes, const Matrix& matrix,
                      const std::vector<float>& importance = {}) {
  const std::vector<double> decoded = naive::decode(type, bytes.data(), bytes.size());
  double off = 0, all = 0;
  for (std::size_t i = 0; i < decoded.size(); ++i) {
    const double x = matrix.numbers[i], w = importance.empty() ? 1 : importance[i % std::size_t(matrix.cols)];
    off += w * (decoded[i] - x) * (decoded[i] - x);
    all += w * x * x;
  }
  return std::sqrt(off / all);
}

template <class Block>
void expect_no_more_error(const std::string& type) {
  for (const std::string name : {"ggml.normal", "ggml.heavy", "ggml.zeros", "ggml.edges"}) {
    const Matrix matrix = original(name);
    const auto tensor = stored().at(name + "." + type + ".bytes");
    const double reference = relative_error(type, moe::io::as<std::uint8_t>(tensor), matrix);
    const double ours = relative_error(type, encoded<Block>(matrix), matrix);
    std::printf("%-12s %s  ours %.6f  ggml %.6f  %.3f\n", name.c_str(), type.c_str(), ours, reference,
                ours / reference);
    EXPECT_LE(ours, reference) << name << " " << type;
  }
}

TEST(Encode, KQuantsErrNoMoreThanGgmls) {
  expect_no_more_error<moe::Q2_K>("Q2_K");
  expect_no_more_error<moe::Q3_K>("Q3_K");
  expect_no_more_error<moe::Q4_K>("Q4_K");
  expect_no_more_error<moe::Q5_K>("Q5_K");
  expect_no_more_error<moe::Q6_K>("Q6_K");
}

}  // namespace
