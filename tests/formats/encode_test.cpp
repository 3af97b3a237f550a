/// @file  Quantisers, against the bytes that the formats' own software wrote: those in
/// tests/real_quant/quantise.safetensors,
///        and those in the folder that MOE_QUANT_DIR names.
#include <moe/core/quantized.hpp>
#include <moe/formats/encode_ggml.hpp>
#include <moe/formats/encode_k.hpp>
#include <moe/formats/encode_matrix.hpp>
#include <moe/formats/encode_safetensors.hpp>
#include <moe/io/safetensors.hpp>
#include <moe/runtime/executors/openmp.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <functional>
#include <initializer_list>
#include <limits>
#include <map>
#include <random>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "naive_blocks.hpp"

namespace {

namespace fs = std::filesystem;
using moe::Index, moe::io::Tensors;

/// Matrices, with what software made of them.
struct Stored {
  Tensors tensors;
  std::string prefix;  // of their names

  moe::io::Tensor at(const std::string& name) const { return tensors.at(prefix + name); }
  bool contains(const std::string& name) const { return tensors.contains(prefix + name); }

  /// Of these tensors, the matrices: "normal", "heavy", …
  std::vector<std::string> matrices() const {
    std::vector<std::string> all;
    const std::string end = ".original";
    for (const std::string& name : tensors.names()) {
      if (!name.starts_with(prefix) || !name.ends_with(end)) continue;
      all.push_back(name.substr(prefix.size(), name.size() - prefix.size() - end.size()));
    }
    return all;
  }
};

/// The project's own, and those of MOE_QUANT_DIR, if it has some of this family.
std::vector<Stored> sources(const std::string& family) {
  std::vector<Stored> all = {
      {Tensors::open(fs::path(MOE_SOURCE_DIR) / "tests/real_quant/quantise.safetensors"), family + "."}};
  if (const char* const named = std::getenv("MOE_QUANT_DIR")) {
    const fs::path file = fs::path(named) / (family + ".safetensors");
    EXPECT_TRUE(fs::is_directory(named) && !fs::is_empty(named))
        << "MOE_QUANT_DIR is " << named << ", which is not there, or empty";
    if (fs::exists(file)) all.push_back({Tensors::open(file), ""});
  }
  for (const Stored& stored : all) EXPECT_FALSE(stored.matrices().empty()) << family;
  return all;
}

struct Matrix {
  Index rows, cols;
  std::vector<float> numbers;
};

/// Of three dimensions: the rows of all matrices.
Matrix original(const Stored& stored, const std::string& name) {
  const auto tensor = stored.at(name + ".original");
  std::vector<float> numbers;
  moe::io::with_floats(tensor, [&](const auto& its) {
    for (const auto number : its) numbers.push_back(float(number));
  });
  const Index cols = tensor.shape.back();
  return {std::ssize(numbers) / cols, cols, std::move(numbers)};
}

/// How many of these bytes are not as stored, a sentence; empty if all are.
std::string difference(const moe::io::Tensor& expected, std::span<const std::byte> got) {
  if (got.size() != expected.bytes.size()) {
    return std::to_string(got.size()) + " bytes, expected " + std::to_string(expected.bytes.size());
  }
  std::size_t off = 0, first = got.size();
  for (std::size_t i = 0; i < got.size(); ++i) {
    if (got[i] == expected.bytes[i]) continue;
    first = std::min(first, i);
    ++off;
  }
  if (off == 0) return "";
  return std::to_string(off) + " of " + std::to_string(got.size()) + " bytes differ, the first at " +
         std::to_string(first);
}

template <class T>
std::string difference(const moe::io::Tensor& expected, const std::vector<T>& got) {
  return difference(expected, std::as_bytes(std::span(got)));
}

using Bytes = std::vector<std::byte>;

template <class Block>
Bytes encoded(std::span<const float> x, const float* importance = nullptr) {
  Bytes bytes(x.size() / std::size_t(moe::Encoder<Block>::numbers) * std::size_t(moe::Encoder<Block>::bytes));
  moe::encode<Block>(x.data(), std::ssize(x), bytes.data(), importance);
  return bytes;
}

/// Row after row, each with the importance of its columns.
template <class Block>
Bytes encoded(const Matrix& matrix, const std::vector<float>& importance = {}) {
  Bytes all;
  for (Index r = 0; r < matrix.rows; ++r) {
    const std::span row(matrix.numbers.data() + r * matrix.cols, std::size_t(matrix.cols));
    const Bytes its = encoded<Block>(row, importance.empty() ? nullptr : importance.data());
    all.insert(all.end(), its.begin(), its.end());
  }
  return all;
}

/// f(Block()) of each type whose bytes are ggml's own.
template <class F>
void for_each_plain(const F& f) {
  f(moe::Q8_0());
  f(moe::Q4_0());
  f(moe::Q4_1());
  f(moe::Q5_0());
  f(moe::Q5_1());
  f(moe::IQ4_NL());
  f(moe::GgmlMxfp4());
  f(moe::GgmlNvfp4());
  f(moe::TQ1_0());
  f(moe::TQ2_0());
}

template <class F>
void for_each_k(const F& f) {
  f(moe::Q2_K());
  f(moe::Q3_K());
  f(moe::Q4_K());
  f(moe::Q5_K());
  f(moe::Q6_K());
}

TEST(Encode, GgmlsBytes) {
  for (const Stored& stored : sources("ggml")) {
    for (const std::string& name : stored.matrices()) {
      const Matrix matrix = original(stored, name);
      for_each_plain([&]<class Block>(Block) {
        const std::string type = std::string(".") + Block::name + ".bytes";
        EXPECT_EQ(difference(stored.at(name + type), encoded<Block>(matrix)), "") << name << type;
      });
    }
  }
}

TEST(Encode, TransformersFp8) {
  int schemes = 0;
  for (const Stored& stored : sources("transformers_fp8")) {
    for (const std::string& matrix : stored.matrices()) {
      const Matrix x = original(stored, matrix);
      for (const std::string scheme : {"float_128x128", "float_64x32", "float_tensor"}) {
        const std::string name = matrix + "." + scheme;
        if (!stored.contains(name + ".weight")) continue;
        const auto shape = stored.at(name + ".weight").shape;
        const Index rows = scheme == "float_tensor" ? shape[shape.size() - 2] : scheme == "float_64x32" ? 64 : 128;
        const Index cols = scheme == "float_tensor" ? x.cols : scheme == "float_64x32" ? 32 : 128;
        std::vector<std::uint8_t> codes(x.numbers.size());
        std::vector<float> scales;
        for (Index r = 0; r < x.rows; r += rows) {
          for (Index c = 0; c < x.cols; c += cols) {
            const auto at = std::size_t(r * x.cols + c);
            scales.push_back(moe::encoding::encode_fp8(&x.numbers[at], rows, cols, x.cols, &codes[at]));
          }
        }
        EXPECT_EQ(difference(stored.at(name + ".weight"), codes), "") << name;
        EXPECT_EQ(difference(stored.at(name + ".weight_scale_inv"), scales), "") << name;
        ++schemes;
      }
    }
  }
  EXPECT_GE(schemes, 8);
}

/// T's tensors of a matrix of W, as compressed-tensors stores them.
template <class T, class W>
void expect_compressed(const Stored& stored, const std::string& name, const char* scheme, int& schemes) {
  const std::string its = name + "." + scheme;
  if (!stored.contains(its + ".weight_packed")) return;
  const auto tensor = stored.at(name + ".original");
  const auto numbers = moe::io::as<W>(tensor);
  const moe::WeightMap<W> map(numbers.data(), tensor.shape[0], tensor.shape[1], Eigen::OuterStride<>(tensor.shape[1]));
  const moe::CodedMatrix coded = moe::encode_matrix<T, W>(map);
  EXPECT_EQ(difference(stored.at(its + ".weight_packed"), coded.codes), "") << its;
  EXPECT_EQ(difference(stored.at(its + ".weight_scale"), coded.scales), "") << its;
  if (std::is_same_v<T, moe::GroupNvfp4>) {
    EXPECT_EQ(difference(stored.at(its + ".weight_global_scale"), std::vector<float>{coded.factor}), "") << its;
  }
  ++schemes;
}

TEST(Encode, CompressedTensors) {
  int schemes = 0;
  for (const Stored& stored : sources("compressed_tensors")) {
    for (const std::string& name : stored.matrices()) {
      const std::string dtype = stored.at(name + ".original").dtype;
      const auto of = [&]<class W>(W) {
        expect_compressed<moe::GroupInt4<32>, W>(stored, name, "int4_g32", schemes);
        expect_compressed<moe::GroupInt4<128>, W>(stored, name, "int4_g128", schemes);
        expect_compressed<moe::GroupMxfp4, W>(stored, name, "mxfp4", schemes);
        expect_compressed<moe::GroupNvfp4, W>(stored, name, "nvfp4", schemes);
      };
      if (dtype == "F32") of(float());
      if (dtype == "BF16") of(moe::bfloat16());
    }
  }
  EXPECT_GE(schemes, 20);
}

/// ‖decoded − x‖ / ‖x‖, each square times its column's importance.
double relative_error(const std::string& type, std::span<const std::byte> bytes, const Matrix& matrix,
                      const std::vector<float>& importance = {}) {
  const auto decoded = naive::decode(type, reinterpret_cast<const std::uint8_t*>(bytes.data()), bytes.size());
  double off = 0, all = 0;
  for (std::size_t i = 0; i < decoded.size(); ++i) {
    const double x = matrix.numbers[i], w = importance.empty() ? 1 : importance[i % std::size_t(matrix.cols)];
    off += w * (decoded[i] - x) * (decoded[i] - x);
    all += w * x * x;
  }
  return std::sqrt(off / all);
}

TEST(Encode, KQuantsErrNoMoreThanGgmls) {
  for (const Stored& stored : sources("ggml")) {
    for (const std::string& name : stored.matrices()) {
      const Matrix matrix = original(stored, name);
      for_each_k([&]<class Block>(Block) {
        const auto bytes = stored.at(name + "." + Block::name + ".bytes");
        const double reference = relative_error(Block::name, bytes.bytes, matrix);
        const double ours = relative_error(Block::name, encoded<Block>(matrix), matrix);
        RecordProperty(name + "_" + Block::name, std::to_string(ours) + " of " + std::to_string(reference));
        EXPECT_LE(ours, reference) << name << " " << Block::name;
      });
    }
  }
}

/// f(Block()) of each type that has an encoder which looks at importance.
template <class F>
void for_each_weighed(const F& f) {
  f(moe::Q4_0());
  f(moe::Q4_1());
  f(moe::Q5_0());
  f(moe::Q5_1());
  f(moe::IQ4_NL());
  for_each_k(f);
}

TEST(Encode, ImportanceLowersTheErrorThatItWeighs) {
  const Stored stored = sources("ggml")[0];
  const Matrix matrix = original(stored, "normal");
  std::vector<float> importance(std::size_t(matrix.cols));
  std::mt19937 random(7);
  for (float& one : importance) one = float(random() % 1000) * float(random() % 1000) * float(random() % 1000) * 1e-9F;
  for_each_weighed([&]<class Block>(Block) {
    const double without = relative_error(Block::name, encoded<Block>(matrix), matrix, importance);
    const double with = relative_error(Block::name, encoded<Block>(matrix, importance), matrix, importance);
    EXPECT_LT(with, 0.97 * without) << Block::name;
  });
  for_each_k([&]<class Block>(Block) {
    const Bytes alike = encoded<Block>(matrix);
    EXPECT_EQ(encoded<Block>(matrix, std::vector<float>(importance.size(), 0)), alike) << Block::name << ": of zeros";
    EXPECT_EQ(encoded<Block>(matrix, std::vector<float>(importance.size(), 1)), alike) << Block::name << ": of ones";
  });
}

/// ggml's own weigh as well; what they write lies above both of these on every matrix that was tried.
TEST(Encode, ImportanceErrsNoMoreThanWithoutNorThanAFineGridDoes) {
  std::mt19937 random(11);
  const auto uniform = [&] { return float(random() % 65536) / 65536; };
  const auto normal = [&] { return uniform() + uniform() + uniform() + uniform() - 2; };
  // Normal; with few peaks; far from zero; of one sign; mostly zeros; powers of two; all the same.
  for (int kind = 0; kind < 7; ++kind) {
    Matrix matrix{2, 512, {}};
    for (Index i = 0; i < 2 * 512; ++i) {
      const float x = 0.05F * normal();
      matrix.numbers.push_back(kind == 0   ? x
                               : kind == 1 ? (random() % 200 == 0 ? 100 * x : x)
                               : kind == 2 ? x + 0.2F
                               : kind == 3 ? -std::fabs(x)
                               : kind == 4 ? (random() % 10 == 0 ? x : 0)
                               : kind == 5 ? std::ldexp(x < 0 ? -1.F : 1.F, -int(random() % 12))
                                           : 0.3F);
    }
    for (const bool skewed : {false, true}) {
      std::vector<float> importance(512);
      for (float& one : importance) one = skewed ? std::exp2(12 * normal()) : 0.1F + uniform();
      std::map<std::string, double> errors;
      for_each_weighed([&]<class Block>(Block) {
        const double without = relative_error(Block::name, encoded<Block>(matrix), matrix, importance);
        errors[Block::name] = relative_error(Block::name, encoded<Block>(matrix, importance), matrix, importance);
        EXPECT_LE(errors[Block::name], without) << Block::name << ", kind " << kind << (skewed ? ", skewed" : "");
      });
      for (const auto& [name, half] : {std::pair("Q4_0", 8), std::pair("Q5_0", 16)}) {
        double off = 0, all = 0;
        for (std::size_t block = 0; block < matrix.numbers.size(); block += 32) {
          const float* const x = &matrix.numbers[block];
          const float* const w = &importance[block % 512];
          const float peak = std::fabs(x[moe::encoding::peak(x, 32)]);
          double least = std::numeric_limits<double>::infinity();
          for (int step = -200; step <= 200; ++step) {
            const double scale = double(step) / 200 * 1.3 * double(peak) / half;
            double its = 0;
            for (int i = 0; i < 32; ++i) {
              const double code =
                  scale == 0 ? 0 : std::clamp(std::round(double(x[i]) / scale), -double(half), half - 1.0);
              its += double(w[i]) * (code * scale - double(x[i])) * (code * scale - double(x[i]));
            }
            least = std::min(least, its);
          }
          off += least;
          for (int i = 0; i < 32; ++i) all += double(w[i]) * double(x[i]) * double(x[i]);
        }
        // The grid's scales are not rounded to float16, ours are: by 2^-11 of a number.
        EXPECT_LE(errors[name], std::sqrt(off / all) + 0x1p-12) << name << ", kind " << kind;
      }
    }
  }
}

/// Numbers about as likely near zero as weights are, of whole numbers alone, so that every compiler makes the same.
std::vector<float> some_numbers(std::size_t count, unsigned seed) {
  std::mt19937 random(seed);
  std::vector<float> numbers;
  while (numbers.size() < count) {
    int sum = 0;
    for (int i = 0; i < 6; ++i) sum += int(random() >> 12) - (1 << 19);
    numbers.push_back(float(sum) * 0x1p-25F);
  }
  return numbers;
}

std::uint32_t checksum(std::span<const std::byte> bytes) {
  std::uint32_t sum = 2166136261U;  // FNV-1a
  for (const std::byte byte : bytes) sum = (sum ^ std::uint32_t(byte)) * 16777619U;
  return sum;
}

TEST(Encode, BitsAreTheSameFromEveryCompilerAndProcessor) {
  const std::vector<float> x = some_numbers(256 * 40, 1);
  std::string sums;
  const auto add = [&](const std::string& name, std::span<const std::byte> bytes) {
    char text[100];
    std::snprintf(text, sizeof text, "%s %08x\n", name.c_str(), checksum(bytes));
    sums += text;
  };
  for_each_plain([&]<class Block>(Block) { add(Block::name, encoded<Block>(x)); });
  for_each_k([&]<class Block>(Block) { add(Block::name, encoded<Block>(x)); });
  std::vector<float> importance = some_numbers(x.size(), 9);
  for (float& one : importance) one = std::fabs(one);
  for_each_weighed(
      [&]<class Block>(Block) { add(Block::name + std::string("!"), encoded<Block>(x, importance.data())); });
  const moe::WeightMap<float> map(x.data(), 40, 256, Eigen::OuterStride<>(256));
  const auto matrix = [&]<class T>(T) {
    const moe::CodedMatrix coded = moe::encode_matrix<T, float>(map);
    add(T::name, coded.codes);
    add(std::string(T::name) + " scales", coded.scales);
  };
  matrix(moe::GroupInt4<32>());
  matrix(moe::GroupMxfp4());
  matrix(moe::GroupNvfp4());
  // g++ 12 for SSE2 and AVX-512, clang++ 14 for AVX-512; those without importance g++ 12 for ARM under qemu-user, too.
  EXPECT_EQ(sums,
            "Q8_0 7ef9baaa\nQ4_0 8378f0db\nQ4_1 34eb7084\nQ5_0 ed4b18ac\nQ5_1 e3cb47d7\nIQ4_NL bfac2eab\n"
            "MXFP4 a32ab22a\nNVFP4 b0fd1d1a\nTQ1_0 3084fbd8\nTQ2_0 d9d8326a\nQ2_K 4e40a468\nQ3_K d88f1f86\n"
            "Q4_K 3a2f29f0\nQ5_K 33815ea3\nQ6_K 885cd6ae\nQ4_0! 4ac1b4e4\nQ4_1! f22e40aa\nQ5_0! d9d67cc8\n"
            "Q5_1! 2feeab1a\nIQ4_NL! 4b23e0df\nQ2_K! 742fdb80\nQ3_K! a1ff4fca\nQ4_K! 9e67c5df\nQ5_K! 96e10ae4\n"
            "Q6_K! f07ee3b3\nINT4 4418be19\nINT4 scales ba4bc490\n"
            "MXFP4 c3f1cde7\nMXFP4 scales 32199fa1\nNVFP4 0313bef8\nNVFP4 scales 3c927142\n");
}

TEST(Encode, ImportanceCountsByItsRatiosAlone) {
  const std::vector<float> x = some_numbers(256 * 4, 5);
  std::vector<float> importance = some_numbers(256, 6);
  for (float& one : importance) one = std::fabs(one) + 0.01F;
  std::fill(importance.begin() + 64, importance.begin() + 96, 0.F);  // where nothing counts, all do
  const moe::WeightMap<float> map(x.data(), 4, 256, Eigen::OuterStride<>(256));
  const auto same = [&]<class T>(T) {
    const auto expected = moe::encode_matrix<T, float>(map, importance);
    for (const int up : {-100, -30, 30, 120}) {
      std::vector<float> scaled = importance;
      for (float& one : scaled) one = std::ldexp(one, up);
      EXPECT_EQ((moe::encode_matrix<T, float>(map, scaled).codes), expected.codes) << T::name << " 2^" << up;
    }
  };
  for_each_weighed(same);
}

TEST(Encode, ThreadsChangeNothing) {
  const std::vector<float> x = some_numbers(256 * 256, 2);
  const moe::WeightMap<float> map(x.data(), 256, 256, Eigen::OuterStride<>(256));
  const auto same = [&]<class T>(T) {
    const auto one = moe::encode_matrix<T, float>(map),
               four = moe::encode_matrix<T, float>(map, {}, "", moe::OpenMp(4));
    EXPECT_EQ(one.codes, four.codes);
    EXPECT_EQ(one.scales, four.scales);
    EXPECT_EQ(one.factor, four.factor);
  };
  same(moe::BlockFp8());
  same(moe::GroupNvfp4());
  same(moe::Q4_0());
}

TEST(Encode, TheLibraryReadsWhatItWritesAsTheNaiveFormulasDo) {
  const std::vector<float> x = some_numbers(256 * 8, 3);
  const auto same = [&]<class Block>(Block) {
    const Bytes bytes = encoded<Block>(x);
    const auto naive = naive::decode(Block::name, reinterpret_cast<const std::uint8_t*>(bytes.data()), bytes.size());
    std::vector<float> decoded(x.size());
    const moe::QuantizedMatrix matrix(moe::block_format<Block>, 1, std::ssize(x), {bytes.data(), std::ssize(bytes)});
    matrix.decode(0, 0, std::ssize(x), decoded.data());
    for (std::size_t i = 0; i < x.size(); ++i) {
      ASSERT_NEAR(double(decoded[i]), naive[i], 1e-6 * (1 + std::fabs(naive[i]))) << Block::name << " " << i;
    }
  };
  for_each_plain(same);
  for_each_k(same);
}

/// Whatever finite numbers are coded, something is written, and zeros stay zeros.
TEST(Encode, AllFiniteNumbersAreCoded) {
  constexpr float largest = std::numeric_limits<float>::max(), smallest = std::numeric_limits<float>::denorm_min();
  std::vector<std::vector<float>> rows;
  for (const float one : {0.0F, -0.0F, 1.0F, -1.0F, largest, -largest, smallest, -smallest, 1e-30F, 65504.0F}) {
    rows.emplace_back(256, one);
    rows.emplace_back(256, 0.0F);
    rows.back()[100] = one;
    rows.emplace_back(256, -one);
    rows.back()[7] = one;
  }
  std::vector<float> importance(256, 1e-30F);
  importance[7] = 1e30F;
  importance[100] = 0;
  const auto code = [&]<class Block>(Block) {
    for (const auto& row : rows) {
      for (const float* const counts : std::initializer_list<const float*>{nullptr, importance.data()}) {
        const Bytes bytes = encoded<Block>(row, counts);
        const auto numbers =
            naive::decode(Block::name, reinterpret_cast<const std::uint8_t*>(bytes.data()), bytes.size());
        const bool zeros = std::all_of(row.begin(), row.end(), [](float x) { return x == 0; });
        for (const double number : numbers) {
          ASSERT_TRUE(!zeros || number == 0) << Block::name << " of " << row[0];
        }
      }
    }
  };
  for_each_plain(code);
  for_each_k(code);
}

TEST(Encode, NumbersOfSixteenBitsAreRoundedAsEigens) {
  std::mt19937 random(5);
  for (int i = 0; i < 200000; ++i) {
    const float x = std::bit_cast<float>(std::uint32_t(random()));
    if (std::isnan(x)) continue;
    ASSERT_EQ(moe::encoding::to_half(x), Eigen::numext::bit_cast<std::uint16_t>(Eigen::half(x))) << x;
    ASSERT_EQ(moe::encoding::to_bfloat16(x), Eigen::numext::bit_cast<std::uint16_t>(Eigen::bfloat16(x))) << x;
  }
  for (unsigned bits = 0; bits < 65536; ++bits) {
    const float x = moe::encoding::from_half(std::uint16_t(bits));
    if (std::isnan(x)) continue;
    ASSERT_EQ(moe::encoding::to_half(x), bits);
  }
}

TEST(Encode, NumbersOfEightBitsAreRoundedToEven) {
  for (std::uint8_t code = 0; code < 0x7e; ++code) {
    const float x = moe::encoding::from_e4m3(code), next = moe::encoding::from_e4m3(std::uint8_t(code + 1));
    const float middle = (x + next) / 2;
    EXPECT_EQ(moe::encoding::to_e4m3(x), code);
    EXPECT_EQ(moe::encoding::to_e4m3(-x), code | 0x80);
    EXPECT_EQ(moe::encoding::to_e4m3(middle), code % 2 == 0 ? code : code + 1);
    EXPECT_EQ(moe::encoding::to_e4m3(std::nextafter(middle, 0.0F)), code);
    EXPECT_EQ(moe::encoding::to_e4m3(std::nextafter(middle, 1000.0F)), code + 1);
  }
  EXPECT_EQ(moe::encoding::to_e4m3(1e9F), 0x7e);
  EXPECT_EQ(moe::encoding::to_e4m3(std::numeric_limits<float>::quiet_NaN()), 0x7f);
}

TEST(Encode, TiesOfFourBitsGoToEvenInSafetensorsAndTowardsZeroInGguf) {
  const float tie[] = {0.25F, 0.75F, 1.25F, 1.75F, 2.5F, 3.5F, 5};
  const int even[] = {0, 2, 2, 4, 4, 6, 6}, lower[] = {0, 1, 2, 3, 4, 5, 6};
  for (int i = 0; i < 7; ++i) {
    EXPECT_EQ(moe::encoding::to_e2m1(tie[i]), even[i]);
    EXPECT_EQ(moe::encoding::to_e2m1(-tie[i]), even[i] | 8);
    EXPECT_EQ(moe::encoding::nearest_e2m1(tie[i], 0.5F), lower[i]);
    EXPECT_EQ(moe::encoding::nearest_e2m1(-tie[i], 0.5F), lower[i] == 0 ? 0 : lower[i] | 8);
  }
  EXPECT_EQ(moe::encoding::to_e2m1(-0.0F), 0);
}

TEST(Encode, SharedExponentsOfFourBitsDifferBetweenFiles) {
  std::vector<float> x(32, 0);
  x[3] = 7.9F;
  std::uint8_t code[32];
  EXPECT_EQ(moe::encoding::encode_mxfp4(x.data(), code), 128);  // 2 · 4
  EXPECT_EQ(code[3], 6);
  const Bytes ggml = encoded<moe::GgmlMxfp4>(std::span<const float>(x));
  EXPECT_EQ(int(ggml[0]), 127);  // 1 · 6
  EXPECT_EQ(int(ggml[1 + 3]), 7);
  x[3] = std::nextafter(8.0F, 0.0F);  // whose logarithm is 3, as a float
  EXPECT_EQ(int(encoded<moe::GgmlMxfp4>(std::span<const float>(x))[0]), 128);
}

TEST(Encode, ScalesOfGgmlsNvfp4RoundHalvesUpAndKnowNothingFrom256To448) {
  EXPECT_EQ(moe::encoding::to_ue4m3(0), 0);
  EXPECT_EQ(moe::encoding::to_ue4m3(0x1p-10F), 1);    // half a step
  EXPECT_EQ(moe::encoding::to_ue4m3(0.0155F), 7);     // nearer to 8 steps, 2^-6
  EXPECT_EQ(moe::encoding::to_ue4m3(1.0625F), 0x39);  // a tie, up
  EXPECT_EQ(moe::encoding::to_ue4m3(240), 0x77);
  EXPECT_EQ(moe::encoding::to_ue4m3(250), 0x7e);
  EXPECT_EQ(moe::encoding::to_ue4m3(300), 0x7e);
}

}  // namespace
