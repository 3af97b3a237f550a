#include "moe/kernels/integer_products.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <string>
#include <type_traits>
#include <vector>

#include "moe/core/weight_stack.hpp"
#include "moe/formats/ggml.hpp"
#include "moe/formats/mx.hpp"
#include "moe/kernels/matmul.hpp"
#include "quantized_blocks.hpp"
#include "random.hpp"

namespace moe::test {
namespace {

using kernels::ActivationCodes;
using Fast = kernels::Fast<Quantized>;

constexpr Index few = Fast::blocks_pay - 1;  // columns, at most, that are no blocks

template <class F>
void for_each_type_with_integers(const F& f) {
  int types = 0;
  for (const GgmlType& type : ggml_types) {
    if (type.format == nullptr || type.format->integers == nullptr) continue;
    SCOPED_TRACE(std::string(type.name));
    f(type);
    ++types;
  }
  EXPECT_EQ(types, 14);
}

Matrix<float> products(const QuantizedMatrix& w, const Matrix<float>& x, Index first, Index last) {
  Scratch scratch;
  const auto columns = kernels::activations_of<Fast>(x, kernels::columns_in_blocks<Fast>(x.cols(), {}) > 0, scratch,
                                                     kernels::run_in_order);
  Matrix<float> y = Matrix<float>::Constant(w.rows(), x.cols(), 7);
  kernels::matmul_rows<Fast>(w, first, last, columns, y.data(), y.outerStride(), scratch);
  return y;
}
Matrix<float> products(const QuantizedMatrix& w, const Matrix<float>& x) { return products(w, x, 0, w.rows()); }

/// What Products::fast promises: scale · code of weights and activations, in double.
Eigen::MatrixXd twin(const QuantizedMatrix& w, const Matrix<float>& x) {
  Eigen::MatrixXd coded = Eigen::MatrixXd::Zero(x.rows(), x.cols());
  for (Index c = 0; c < x.cols(); ++c) {
    for (Index first = 0; first < x.rows(); first += 32) {
      const Index size = std::min<Index>(32, x.rows() - first);
      const float largest = x.col(c).segment(first, size).cwiseAbs().maxCoeff();
      for (Index i = first; i < first + size && largest > 0; ++i) {
        coded(i, c) = double(largest) / 127 * std::nearbyint(double(x(i, c)) * 127 / double(largest));
      }
    }
  }
  return dequantized(w).cast<double>() * coded;
}

double relative(const Eigen::MatrixXd& difference, const Eigen::MatrixXd& of) { return difference.norm() / of.norm(); }

TEST(ByteProducts, AreThoseOfIntegers) {
  Random random(1);
  const auto expect_sums = [&]<bool nonnegative>(std::bool_constant<nonnegative>) {
    for (int round = 0; round < 200; ++round) {
      constexpr int size = int(kernels::register_bytes);
      std::int8_t w[size], x[size];
      std::int32_t starts[size / 4] = {}, sums[size / 4] = {}, got[size / 4];
      for (int i = 0; i < size; ++i) {
        w[i] = std::int8_t(nonnegative ? random.below(128) : random.below(256) - 128);
        x[i] = std::int8_t(random.below(255) - 127);
        if (round < 2) w[i] = nonnegative ? 127 : -128;  // the largest sums
        if (round < 2) x[i] = round == 0 ? 127 : -127;
        starts[i / 4] -= 128 * x[i];
        sums[i / 4] += w[i] * x[i];
      }
      const kernels::ByteWeights<nonnegative, kernels::register_bytes> weights(
          kernels::load_as<kernels::ByteRegister>(w));
      const bool starts_count = kernels::has_starts && !nonnegative;
      using Integers = kernels::IntegersOf<kernels::register_bytes>;
      const auto start = starts_count ? kernels::load_as<Integers>(starts) : Integers{};
      kernels::store(got, kernels::byte_products(weights, kernels::load_as<kernels::ByteRegister>(x), start));
      for (int i = 0; i < size / 4; ++i) EXPECT_EQ(got[i], sums[i]) << "lane " << i << ", round " << round;
    }
  };
  expect_sums(std::true_type());
  expect_sums(std::false_type());
}

TEST(ByteSquares, AreProductsOfTwoRowsAndTwoColumns) {
  Random random(22);
  for (int round = 0; round < 200; ++round) {
    std::int8_t w[2][8], x[2][8];
    std::int32_t sums[4], got[4];
    for (int i = 0; i < 16; ++i) {
      w[i / 8][i % 8] = std::int8_t(round < 2 ? -128 : random.below(256) - 128);  // or the largest sums
      x[i / 8][i % 8] = std::int8_t(round < 2 ? 127 - 254 * round : random.below(255) - 127);
    }
    for (std::int32_t& sum : sums) sum = std::int32_t(random.below(1 << 20)) - (1 << 19);
    const auto products = kernels::added_byte_squares(kernels::load_as<kernels::IntegersOf<16>>(sums),
                                                      kernels::load_as<kernels::BytesOf<16>>(w),
                                                      kernels::load_as<kernels::BytesOf<16>>(x));
    kernels::store(got, products);
    for (int i = 0; i < 4; ++i) {
      for (int k = 0; k < 8; ++k) sums[i] += w[i / 2][k] * x[i % 2][k];
      EXPECT_EQ(got[i], sums[i]) << "row " << i / 2 << ", column " << i % 2 << ", round " << round;
    }
  }
}

TEST(ActivationCodes, AreWithinHalfAStep) {
  Random random(2);
  for (const float scale : {1.F, 3e38F, 1e-30F, 1e-38F, 1e-41F, 1e-44F}) {
    float x[64];
    for (float& number : x) number = scale * float(random());
    x[40] = scale;
    ActivationCodes codes;
    kernels::code_activations(x, codes);
    for (int i = 0; i < 64; ++i) {
      const double step = double(codes.scales[i / 4]);
      EXPECT_LE(std::abs(double(x[i]) - step * codes.codes[i]), step * 0.5001 + 127 * 0x1p-149) << i << " of " << scale;
    }
    EXPECT_EQ(codes.codes[40], 127);
    for (int h = 0; h < 4; ++h) {
      int sum = 0;
      for (int i = 16 * h; i < 16 * h + 16; ++i) sum += codes.codes[i];
      EXPECT_EQ(codes.sums[h], codes.scales[4 * h] * float(sum));
    }
    for (int half = 0; half < 2; ++half) {
      int sum = 0;
      for (int i = 32 * half; i < 32 * half + 32; ++i) sum += codes.codes[i];
      EXPECT_EQ(codes.sums[4 + half], codes.scales[8 * half] * float(sum));
    }
  }
}

TEST(ActivationCodes, OfZerosAreZerosAndOfNoNumberNone) {
  for (const float number : {0.F, -0.F, NAN, -NAN, INFINITY, -INFINITY}) {
    float x[64] = {};
    x[35] = number;
    x[36] = x[1] = std::isfinite(number) ? number : 1;
    ActivationCodes codes;
    kernels::code_activations(x, codes);
    const bool finite = std::isfinite(number);
    EXPECT_EQ(std::isnan(codes.scales[8]), !finite);
    EXPECT_EQ(std::isnan(codes.sums[5]), !finite);
    EXPECT_EQ(codes.codes[36], 0);
    EXPECT_EQ(codes.scales[0], finite ? 0.F : 1.F / 127);
    EXPECT_EQ(codes.codes[1], finite ? 0 : 127);
  }
}

/// The integers of every format are its numbers, to the bit, of any piece.
TEST(IntegerForm, IsTheNumbers) {
  for_each_type_with_integers([](const GgmlType& type) {
    const RandomBlocks blocks(type, 3, 1024, 3);
    const IntegerForm& form = *blocks.matrix.integers();
    for (const auto& [first, count] : {std::pair<Index, Index>{0, 1024}, {256, 512}, {768, 256}}) {
      std::vector<std::int8_t> codes(1024);
      std::vector<float> scales(64), minima(64), numbers(1024);
      blocks.matrix.take(2, first, count, codes.data(), scales.data(), minima.data());
      blocks.matrix.decode(2, first, count, numbers.data());
      for (Index i = 0; i < count; ++i) {
        const std::size_t at = std::size_t(i), group = std::size_t(i / form.group);
        const float number = form.has_minima ? std::fma(scales[group], float(codes[at]), minima[group])
                                             : scales[group] * float(codes[at]);
        ASSERT_EQ(number, numbers[at]) << i;
        if (form.has_minima) {
          ASSERT_GE(codes[at], 0);
        }
      }
    }
  });
}

TEST(IntegerProducts, EqualTheirNaiveTwin) {
  for_each_type_with_integers([](const GgmlType& type) {
    for (const Index cols : {type.numbers, 3 * type.numbers, kernels::round_up(2304, type.numbers)}) {
      for (const Index rows : {1, 3, 4, 21}) {
        const RandomBlocks blocks(type, rows, cols, 4);
        for (const Index tokens : {1, 2, 3, 4, 5, 6, 7, 8, 9, 17, 24, 33, 70, 131}) {
          const auto x = random_matrix<Matrix<float>>(cols, tokens, 5);
          const Eigen::MatrixXd expected = twin(blocks.matrix, x);
          // codes of the twin are rounded in double: a tie may go the other way
          EXPECT_LT(relative(products(blocks.matrix, x).cast<double>() - expected, expected), 2e-3)
              << rows << " rows, " << cols << " columns, " << tokens << " tokens";
        }
      }
    }
  });
}

/// Row r as integers, and a token beside it in whole steps.
struct PlainRow {
  PlainRow(const QuantizedMatrix& w, Index r, const float* token)
      : codes(std::size_t(w.cols())),
        scales(std::size_t(w.cols() / w.integers()->group)),
        minima(scales.size()),
        x(std::size_t(kernels::round_up(w.cols(), 64))) {
    w.take(r, 0, w.cols(), codes.data(), scales.data(), minima.data());
    std::copy_n(token, w.cols(), x.begin());
  }

  std::vector<std::int8_t> codes;
  std::vector<float> scales, minima, x;
};

/// Row r · the token x in plain code, in the order of registers: lanes of four codes, two sums in turn, then halves of
/// lanes. Minima, if there are any, in lanes of groups, `unit` numbers of a row at a time.
float dot_in_plain_code(const QuantizedMatrix& w, Index r, const float* x, Index unit) {
  constexpr int L = kernels::lanes<float>;
  const IntegerForm& form = *w.integers();
  const auto& [codes, scales, minima, padded] = PlainRow(w, r, x);
  float sums[2][L] = {}, of_minima[L] = {};
  for (Index step = 0; step < w.cols(); step += 64) {
    ActivationCodes its;
    kernels::code_activations(padded.data() + step, its);
    for (Index i = step; i < std::min(step + 64, w.cols()); i += 4) {
      int sum = 0;
      for (Index k = i; k < i + 4; ++k) sum += codes[std::size_t(k)] * its.codes[k - step];
      float& lane = sums[i / (4 * L) % 2][i / 4 % L];
      lane = kernels::multiply_add(float(sum), scales[std::size_t(i / form.group)] * its.scales[(i - step) / 4], lane);
    }
    for (Index g = step / form.group; form.has_minima && g < std::min(step + 64, w.cols()) / form.group; ++g) {
      float& lane = of_minima[g % (unit / form.group) % L];
      const Index in_step = g - step / form.group;
      lane = kernels::multiply_add(minima[std::size_t(g)], its.sums[in_step + (form.group == 16 ? 0 : 4)], lane);
    }
  }
  for (int i = 0; i < L; ++i) sums[0][i] = sums[0][i] + sums[1][i] + of_minima[i];
  for (int half = L / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) sums[0][i] += sums[0][i + half];
  }
  return sums[0][0];
}

/// Codes that a format takes to registers, and those of a format that can only write them.
TEST(IntegerProducts, OfFewTokensAreThoseOfPlainCodeToTheBit) {
  for_each_type_with_integers([](const GgmlType& type) {
    const IntegerForm& form = *type.format->integers;
    EXPECT_NE(form.multiply, nullptr);
    IntegerForm taken_form = form;
    taken_form.multiply = nullptr;
    NumberFormat taken_format = *type.format;
    taken_format.integers = &taken_form;
    for (const Index cols : {type.numbers, 2 * type.numbers, 3 * type.numbers, 9 * type.numbers}) {
      constexpr Index rows = 19;
      const RandomBlocks blocks(type, rows, cols, 17);
      const QuantizedMatrix taken(taken_format, rows, cols, blocks.matrix.codes);
      const auto x = random_matrix<Matrix<float>>(cols, few, 18);
      const Matrix<float> in_registers = products(blocks.matrix, x), in_memory = products(taken, x);
      const Index unit = std::max<Index>(128, type.numbers);
      for (Index c = 0; c < few; ++c) {
        for (Index r = 0; r < rows; ++r) {
          ASSERT_EQ(in_registers(r, c), dot_in_plain_code(taken, r, x.col(c).data(), unit)) << r << ' ' << c;
          ASSERT_EQ(in_memory(r, c), dot_in_plain_code(taken, r, x.col(c).data(), 256)) << r << ' ' << c;
        }
      }
    }
  });
}

/// Row r · the token x in plain code, in the order of blocks: group after group, in one sum, or in two of every second
/// four codes, which are added at the end; minima in the first of them.
float block_dot_in_plain_code(const QuantizedMatrix& w, Index r, const float* x, int parts) {
  const IntegerForm& form = *w.integers();
  const auto& [codes, scales, minima, padded] = PlainRow(w, r, x);
  float sums[2] = {};
  for (Index step = 0; step < w.cols(); step += 64) {
    ActivationCodes its;
    kernels::code_activations(padded.data() + step, its);
    for (Index first = step; first < std::min(step + 64, w.cols()); first += form.group) {
      const std::size_t g = std::size_t(first / form.group);
      const float scale = its.scales[(first - step) / 4];
      for (int p = 0; p < parts; ++p) {
        int products = 0, total = 0;
        for (Index i = first; i < first + form.group; ++i) {
          if (i / 4 % parts != p) continue;
          products += codes[std::size_t(i)] * its.codes[i - step];
        }
        for (Index i = first; i < first + form.group; ++i) total += p == 0 ? its.codes[i - step] : 0;
        sums[p] = kernels::multiply_add(float(products), scales[g] * scale, sums[p]);
        if (form.has_minima) sums[p] = kernels::multiply_add(minima[g], scale * float(total), sums[p]);
      }
    }
  }
  return parts == 1 ? sums[0] : sums[0] + sums[1];
}

TEST(IntegerProducts, OfManyTokensAreThoseOfPlainCodeToTheBit) {
  constexpr Index L = kernels::lanes<float>, rows = 13;
  for_each_type_with_integers([](const GgmlType& type) {
    for (const Index cols : {type.numbers, kernels::round_up(2304, type.numbers)}) {
      const RandomBlocks blocks(type, rows, cols, 19);
      for (const Index tokens : {few + 1, L / 2, L / 2 + 1, L, L + 1, L + L / 2, 2 * L, 3 * L + 1, Index(131)}) {
        if (tokens <= few) continue;
        const auto x = random_matrix<Matrix<float>>(cols, tokens, 20);
        const Matrix<float> y = products(blocks.matrix, x);
        for (Index c : {Index(0), tokens / L * L - L, tokens / L * L, tokens - 2, tokens - 1}) {
          c = std::clamp<Index>(c, 0, tokens - 1);
          const int parts = tokens - c / L * L <= L / 2 ? 2 : 1;
          for (Index r = 0; r < rows; ++r) {
            ASSERT_EQ(y(r, c), block_dot_in_plain_code(blocks.matrix, r, x.col(c).data(), parts))
                << "row " << r << ", token " << c << " of " << tokens << ", " << cols << " columns";
          }
        }
      }
    }
  });
}

/// Codes of tokens side by side are those of each alone.
TEST(ActivationCodes, OfManyTokensAreTheirOwn) {
  Random random(21);
  constexpr int L = kernels::lanes<float>;
  const auto expect_codes = [&]<int parts>(std::integral_constant<int, parts>) {
    for (const Index count : {1, L / parts - 1, L / parts}) {
      float x[L][64];
      const float* from[L];
      for (Index i = 0; i < count; ++i) {
        const double scale = std::array{1., 3e38, 1e-30, 1e-38, 1e-41, 1e-44, 0.}[std::size_t(i % 7)];
        for (float& number : x[i]) number = float(scale * random());
        if (i == 1) x[i][40] = NAN;
        if (i == 2) x[i][3] = -INFINITY;
        from[i] = x[i];
      }
      kernels::ManyActivationCodes<parts> all;
      kernels::code_tokens(from, count, all);
      for (Index i = 0; i < count; ++i) {
        ActivationCodes its;
        kernels::code_activations(x[i], its);
        const auto expect_same = [](float a, float b) {
          EXPECT_TRUE(a == b || (std::isnan(a) && std::isnan(b))) << a << ' ' << b;
        };
        for (Index k = 0; k < 64; ++k) {
          ASSERT_EQ(all.codes[k / (4 * parts)][i][k % (4 * parts)], its.codes[k]) << i << ' ' << k;
        }
        for (Index g = 0; g < 6; ++g) {
          const Index first = g < 4 ? 16 * g : 32 * (g - 4), size = g < 4 ? 16 : 32;
          for (int p = 0; p < parts; ++p) {
            int total = 0, in_lane = 0;
            for (Index k = first; k < first + size; ++k) {
              total += its.codes[k];
              in_lane += k / 4 % parts == p ? its.codes[k] : 0;
            }
            const Index lane = i * parts + p;
            expect_same(all.scales[first / 32][lane], its.scales[first / 4]);
            expect_same(all.sums[g][lane], its.scales[first / 4] * float(p == 0 ? total : 0));
            if (kernels::has_starts) {
              EXPECT_EQ(all.starts[g][lane], -128 * in_lane);
            }
            if (p == 0) {
              EXPECT_EQ(its.starts_of_group[g], -128 * total);
            }
          }
        }
      }
    }
  };
  expect_codes(std::integral_constant<int, 1>());
  expect_codes(std::integral_constant<int, 2>());
}

/// Σ |w · x|, which bounds what sums in float may err by.
Eigen::MatrixXd sizes(const QuantizedMatrix& w, const Matrix<float>& x) {
  return dequantized(w).cwiseAbs().cast<double>() * x.cwiseAbs().cast<double>();
}

// What takes codes to registers knows no factor, and is not asked where there is one.
TEST(IntegerProducts, AFactorOfTheMatrixIsInThem) {
  for_each_type_with_integers([](const GgmlType& type) {
    const Index cols = 3 * type.numbers;
    const RandomBlocks blocks(type, 7, cols, 4);
    QuantizedMatrix w = blocks.matrix;
    w.factor = 0.3F;
    for (const Index tokens : {1, 3, 20}) {
      const auto x = random_matrix<Matrix<float>>(cols, tokens, 5);
      const Eigen::MatrixXd expected = twin(w, x);
      EXPECT_LT(relative(products(w, x).cast<double>() - expected, expected), 2e-3) << tokens << " tokens";
    }
  });
}

/// Rows and columns computed together change no bit, and nothing but these rows is written.
TEST(IntegerProducts, NoCutChangesABit) {
  for_each_type_with_integers([](const GgmlType& type) {
    const Index cols = 2 * type.numbers, rows = 11;
    const RandomBlocks blocks(type, rows, cols, 6);
    const auto x = random_matrix<Matrix<float>>(cols, few, 7);
    const Matrix<float> all = products(blocks.matrix, x);
    for (Index first = 0; first < rows; ++first) {
      const Matrix<float> some = products(blocks.matrix, x, first, std::min(first + 5, rows));
      for (Index r = 0; r < rows; ++r) {
        const bool asked_for = r >= first && r < first + 5;
        for (Index c = 0; c < few; ++c) ASSERT_EQ(some(r, c), asked_for ? all(r, c) : 7.F) << r << ' ' << c;
      }
    }
    for (Index c = 0; c < few; ++c) {
      const Matrix<float> alone = products(blocks.matrix, x.col(c));
      for (Index r = 0; r < rows; ++r) ASSERT_EQ(alone(r, 0), all(r, c)) << r << ' ' << c;
    }
  });
}

TEST(IntegerProducts, NaNAndInfinityStayInTheirToken) {
  for_each_type_with_integers([](const GgmlType& type) {
    const Index cols = 2 * type.numbers;
    const RandomBlocks blocks(type, 6, cols, 8);
    for (const Index tokens : {2, 5, 8, 40}) {
      for (const float bad : {NAN, INFINITY, -INFINITY}) {
        auto x = random_matrix<Matrix<float>>(cols, tokens, 9);
        const Matrix<float> good = products(blocks.matrix, x);
        x(cols - 1, 1) = bad;
        const Matrix<float> y = products(blocks.matrix, x);
        for (Index r = 0; r < 6; ++r) {
          EXPECT_TRUE(std::isnan(y(r, 1)));
          for (Index c = 0; c < tokens; ++c) {
            if (c == 1) continue;
            EXPECT_EQ(y(r, c), good(r, c));
          }
        }
      }
    }
  });
}

TEST(IntegerProducts, OfTinyHugeAndNoNumbersAreTheirs) {
  for_each_type_with_integers([](const GgmlType& type) {
    const Index cols = 2 * type.numbers;
    const RandomBlocks blocks(type, 5, cols, 10);
    const Matrix<float> zeros = products(blocks.matrix, Matrix<float>::Zero(cols, 3));
    EXPECT_EQ(zeros.cwiseAbs().maxCoeff(), 0.F);
    EXPECT_EQ(products(blocks.matrix, Matrix<float>(cols, 0)).cols(), 0);
    for (const float scale : {0x1p-100F, 0x1p-120F, 0x1p-130F, 0x1p100F}) {
      const Matrix<float> x = random_matrix<Matrix<float>>(cols, 3, 11, double(scale));
      const Eigen::MatrixXd expected = dequantized(blocks.matrix).cast<double>() * x.cast<double>();
      const double smallest = double(cols) * 127 * 0x1p-149;  // what products of scales may lose
      const Eigen::MatrixXd error = products(blocks.matrix, x).cast<double>() - expected;
      const Eigen::MatrixXd bound = (sizes(blocks.matrix, x) * 0.02).array() + smallest;
      EXPECT_LE((error.cwiseAbs() - bound).maxCoeff(), 0) << scale;
    }
  });
}

/// Of the depth, a multiple of nothing but what the format asks for: MXFP4 of safetensors, in planes.
TEST(IntegerProducts, TakeScalesOfPlanes) {
  Random random(12);
  for (const Index cols : {2, 30, 32, 34, 62, 64, 66, 100, 2050}) {
    const Index groups = (cols + 31) / 32, rows = 5;
    std::vector<std::byte> codes(std::size_t(rows * cols / 2)), scales(std::size_t(rows * groups));
    for (std::byte& byte : codes) byte = std::byte(random.below(256));
    for (std::byte& byte : scales) byte = std::byte(118 + random.below(6));
    const QuantizedMatrix matrix(mxfp4, rows, cols, {codes.data(), cols / 2}, {scales.data(), groups, 1, 32});
    ASSERT_NE(matrix.integers(), nullptr);
    for (const Index tokens : {1, 3, 20}) {
      const auto x = random_matrix<Matrix<float>>(cols, tokens, 13);
      const Eigen::MatrixXd expected = twin(matrix, x);
      EXPECT_LT(relative(products(matrix, x).cast<double>() - expected, expected), 2e-3) << cols;
    }
    if (cols < 66) continue;
    EXPECT_NE(matrix.middle_cols(32, cols - 32).integers(), nullptr);
    EXPECT_EQ(matrix.middle_cols(2, 64).integers(), nullptr);
    const auto x = random_matrix<Matrix<float>>(cols - 32, 2, 14);
    const Eigen::MatrixXd expected = twin(matrix.middle_cols(32, cols - 32), x);
    EXPECT_LT(relative(products(matrix.middle_cols(32, cols - 32), x).cast<double>() - expected, expected), 2e-3);
  }
}

/// How far from the products of the same weights in double: ‖Δy‖ ÷ ‖y‖.
TEST(IntegerProducts, ErrAsLittleAsTheySay) {
  for_each_type_with_integers([](const GgmlType& type) {
    const Index cols = 2048;
    const RandomBlocks blocks(type, 64, cols, 15);
    const auto error_of = [&](const Matrix<float>& x) {
      const Eigen::MatrixXd expected = dequantized(blocks.matrix).cast<double>() * x.cast<double>();
      return relative(products(blocks.matrix, x).cast<double>() - expected, expected);
    };
    Random random(16);
    Matrix<float> normal(cols, 9), heavy(cols, 9);
    for (Index i = 0; i < normal.size(); ++i) {
      double sum = 0;
      for (int k = 0; k < 12; ++k) sum += random();
      normal.data()[i] = float(sum / 2);
      heavy.data()[i] = float(sum / 2 / std::sqrt(std::abs(random()) + 1e-4));  // a tail of the power -2
    }
    const double of_normal = error_of(normal), of_heavy = error_of(heavy);
    RecordProperty("normal", std::to_string(of_normal));
    RecordProperty("heavy", std::to_string(of_heavy));
    EXPECT_LT(of_normal, 8e-3);
    EXPECT_LT(of_heavy, 2e-2);
  });
}

}  // namespace
}  // namespace moe::test
