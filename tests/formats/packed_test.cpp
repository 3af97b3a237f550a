/// @file  Rows that lie interleaved: their numbers, their products, what is refused.
#include "moe/formats/packed.hpp"

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "errors.hpp"
#include "moe/core/weight_stack.hpp"
#include "moe/formats/ggml.hpp"
#include "moe/kernels/matmul.hpp"
#include "quantized_blocks.hpp"
#include "random.hpp"

namespace moe::test {
namespace {

using kernels::ActivationCodes;
using Fast = kernels::Fast<Quantized>;

template <class F>
void for_each_packed_format(const F& f) {
  for (const PackedFormat& format : packed_formats) {
    SCOPED_TRACE(format.packed->name);
    f(*find_ggml_type(format.plain->name));
  }
}

/// Random codes, and the same packed.
struct Both {
  RandomBlocks blocks;
  WeightStack<Quantized> stack;
  const QuantizedMatrix& packed_one;

  Both(const GgmlType& type, Index rows, Index cols, unsigned seed)
      : blocks(type, rows, cols, seed), stack(packed(WeightStack<Quantized>({blocks.matrix}))), packed_one(stack[0]) {}
};

Matrix<float> products(const QuantizedMatrix& w, const Matrix<float>& x, Index first, Index last, bool invariant) {
  Scratch scratch;
  const bool blocks = kernels::columns_in_blocks<Fast>(x.cols(), {.batch_invariant = invariant}) > 0;
  const auto activations = kernels::activations_of<Fast>(x, blocks, scratch, kernels::run_in_order);
  Matrix<float> y = Matrix<float>::Constant(w.rows(), x.cols(), 7);
  kernels::matmul_rows<Fast>(w, first, last, activations, y.data(), y.outerStride(), scratch);
  return y;
}
Matrix<float> products(const QuantizedMatrix& w, const Matrix<float>& x) { return products(w, x, 0, w.rows(), false); }

/// Row r · the token x in plain code: group after group.
float dot_in_plain_code(const QuantizedMatrix& w, Index r, const float* x) {
  const IntegerForm& form = *w.integers();
  const auto cols = std::size_t(w.cols());
  std::vector<std::int8_t> codes(cols);
  std::vector<float> scales(cols / 16), minima(cols / 16), padded(std::size_t(kernels::round_up(w.cols(), 64)));
  w.take(r, 0, w.cols(), codes.data(), scales.data(), minima.data());
  std::copy_n(x, w.cols(), padded.begin());
  float sum = 0;
  for (Index first = 0; first < w.cols(); first += form.group) {
    const Index step = first / 64 * 64;
    ActivationCodes its;
    kernels::code_activations(padded.data() + step, its);
    int products = 0, total = 0;
    for (Index i = first; i < first + form.group; ++i) {
      products += codes[std::size_t(i)] * its.codes[i - step];
      total += its.codes[i - step];
    }
    const float scale = its.scales[(first - step) / 4];
    const auto g = std::size_t(first / form.group);
    sum = kernels::multiply_add(float(products), scales[g] * scale, sum);
    if (form.has_minima) sum = kernels::multiply_add(minima[g], scale * float(total), sum);
  }
  return sum;
}

TEST(Packed, NumbersAndIntegersAreThoseOfTheBlocks) {
  for_each_packed_format([](const GgmlType& type) {
    for (const Index rows : {1, 15, 16, 17, 33}) {
      const Index cols = 3 * type.numbers;
      const Both both(type, rows, cols, 31);
      const QuantizedMatrix &plain = both.blocks.matrix, &its = both.packed_one;
      EXPECT_EQ(dequantized(its), dequantized(plain));
      const IntegerForm& form = *plain.integers();
      std::vector<std::int8_t> codes[2] = {std::vector<std::int8_t>(std::size_t(cols)), codes[0]};
      std::vector<float> scales[2] = {std::vector<float>(std::size_t(cols / 16)), scales[0]},
                         minima[2] = {scales[0], scales[0]};
      for (Index r = 0; r < rows; ++r) {
        plain.take(r, type.numbers, 2 * type.numbers, codes[0].data(), scales[0].data(), minima[0].data());
        its.take(r, type.numbers, 2 * type.numbers, codes[1].data(), scales[1].data(), minima[1].data());
        EXPECT_EQ(codes[1], codes[0]);
        EXPECT_EQ(scales[1], scales[0]);
        if (form.has_minima) {
          EXPECT_EQ(minima[1], minima[0]);
        }
      }
    }
  });
}

/// At any number of rows and tokens, in columns and in blocks.
TEST(Packed, ProductsAreThoseOfPlainCodeToTheBit) {
  for_each_packed_format([](const GgmlType& type) {
    for (const Index cols : {type.numbers, 2 * type.numbers, 3 * type.numbers}) {
      for (const Index rows : {1, 15, 16, 17, 33}) {
        const Both both(type, rows, cols, 32);
        const auto x = random_matrix<Matrix<float>>(cols, 150, 33);
        Matrix<float> expected(rows, 150);
        for (Index c = 0; c < 150; ++c) {
          for (Index r = 0; r < rows; ++r) {
            expected(r, c) = dot_in_plain_code(both.blocks.matrix, r, x.col(c).data());
          }
        }
        for (const Index tokens : {0, 1, 2, 3, 4, 5, 6, 8, 9, 12, 17, 24, 33, 70, 150}) {
          for (const bool invariant : {false, true}) {
            const auto y = products(both.packed_one, x.leftCols(tokens), 0, rows, invariant);
            ASSERT_EQ(y, expected.leftCols(tokens)) << rows << " rows of " << cols << ", " << tokens << " tokens";
          }
        }
      }
    }
  });
}

/// Bands begin and end anywhere.
TEST(Packed, NoCutOfRowsChangesABit) {
  for_each_packed_format([](const GgmlType& type) {
    constexpr Index rows = 35;
    const Both both(type, rows, type.numbers, 34);
    for (const Index tokens : {1, 3, 20}) {
      const auto x = random_matrix<Matrix<float>>(type.numbers, tokens, 35);
      const Matrix<float> all = products(both.packed_one, x);
      for (Index first = 0; first < rows; ++first) {
        for (const Index last : {first, first + 1, std::min(first + 17, rows), rows}) {
          const Matrix<float> some = products(both.packed_one, x, first, last, false);
          for (Index r = 0; r < rows; ++r) {
            const bool asked_for = r >= first && r < last;
            for (Index c = 0; c < tokens; ++c) ASSERT_EQ(some(r, c), asked_for ? all(r, c) : 7.F) << r << ' ' << c;
          }
        }
      }
    }
  });
}

/// Of views: of a factor, of some rows, of some columns.
TEST(Packed, PartsAreThoseOfTheWhole) {
  for_each_packed_format([](const GgmlType& type) {
    const Index cols = 4 * type.numbers, rows = 40;
    const Both both(type, rows, cols, 36);
    for (const Index tokens : {2, 12}) {
      const auto x = random_matrix<Matrix<float>>(cols, tokens, 37);
      const Matrix<float> all = products(both.packed_one, x);
      EXPECT_EQ(products(both.packed_one.some_rows(5, 1, 30), x), all.middleRows(5, 30));
      const Index half = 2 * type.numbers;
      const auto middle = [&](const QuantizedMatrix& w) { return w.middle_cols(type.numbers, half); };
      const RandomBlocks& blocks = both.blocks;
      const Matrix<float> part = products(middle(both.packed_one), x.topRows(half));
      for (Index r = 0; r < rows; ++r) {
        EXPECT_EQ(part(r, 0), dot_in_plain_code(middle(blocks.matrix), r, x.col(0).data()));
      }
      // rows that are no neighbours, and factors, take the way of any format
      const Matrix<float> steps = products(both.packed_one.some_rows(1, 3, 9), x);
      for (Index r = 0; r < 9; ++r) {
        EXPECT_LT((steps.row(r) - all.row(1 + 3 * r)).norm(), 1e-5F * all.row(1 + 3 * r).norm() + 1e-6F);
      }
      QuantizedMatrix twice = both.packed_one;
      twice.factor = 2;
      EXPECT_EQ(dequantized(twice), 2 * dequantized(both.packed_one));
      EXPECT_LT((products(twice, x) - 2 * all).norm(), 1e-5F * all.norm());
    }
    EXPECT_EQ(both.packed_one.middle_cols(1, type.numbers).integers(), nullptr);
  });
}

TEST(Packed, RowsInStepsBecomeRows) {
  const GgmlType& type = *find_ggml_type("Q4_K");
  const RandomBlocks blocks(type, 20, 256, 38);
  const auto stack =
      packed(WeightStack<Quantized>({blocks.matrix.some_rows(1, 2, 9), blocks.matrix.some_rows(0, 2, 9)}));
  EXPECT_EQ(dequantized(stack[0]), dequantized(blocks.matrix.some_rows(1, 2, 9)));
  EXPECT_EQ(dequantized(stack[1]), dequantized(blocks.matrix.some_rows(0, 2, 9)));
}

TEST(Packed, NaNAndInfinityStayInTheirToken) {
  for_each_packed_format([](const GgmlType& type) {
    const Index cols = 2 * type.numbers;
    const Both both(type, 18, cols, 39);
    for (const Index tokens : {2, 4, 7, 20}) {
      auto x = random_matrix<Matrix<float>>(cols, tokens, 40);
      const Matrix<float> good = products(both.packed_one, x);
      for (const float bad : {NAN, INFINITY, -INFINITY}) {
        x(cols - 1, 1) = bad;
        const Matrix<float> y = products(both.packed_one, x);
        for (Index r = 0; r < 18; ++r) {
          for (Index c = 0; c < tokens; ++c) {
            if (c == 1) {
              EXPECT_TRUE(std::isnan(y(r, c)));
            } else {
              EXPECT_EQ(y(r, c), good(r, c));
            }
          }
        }
      }
    }
  });
}

TEST(Packed, SaysWhatTheyTake) {
  const auto bits = [](const char* name) { return find_packed_format(std::string_view(name))->packed->bits; };
  EXPECT_EQ(bits("Q4_0 packed"), 4.5);
  EXPECT_EQ(bits("Q8_0 packed"), 8.5);
  EXPECT_EQ(bits("Q4_K packed"), 4.625);
  EXPECT_EQ(bits("Q6_K packed"), 6.5625);
  EXPECT_EQ(bits("IQ4_XS packed"), 4.3125);
  EXPECT_EQ(bits("IQ4_NL packed"), 4.5);
  EXPECT_EQ(bits("MXFP4 packed"), 4.25);
}

TEST(Packed, RefusesWhatItCannotPack) {
  const RandomBlocks q5(*find_ggml_type("Q5_0"), 2, 64, 41), q4(*find_ggml_type("Q4_0"), 2, 96, 42);
  EXPECT_EQ(error_of([&] { packed(WeightStack<Quantized>({q5.matrix}), "w_up"); }),
            "packed: w_up of expert 0 is Q5_0, which has no packed form");
  EXPECT_EQ(error_of([&] { packed(WeightStack<Quantized>({q4.matrix.middle_cols(8, 64)})); }),
            "packed: weights of expert 0 is Q4_0, cut within a block");
  const auto once = packed(WeightStack<Quantized>({q4.matrix}));
  EXPECT_EQ(error_of([&] { packed(once); }), "packed: weights of expert 0 is Q4_0 packed, which has no packed form");
}

}  // namespace
}  // namespace moe::test
