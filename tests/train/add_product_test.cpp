// C += A·B against its naive twin.
#include "moe/train/kernels/add_product.hpp"

#include <vector>

#include <gtest/gtest.h>

#include "compare.hpp"
#include "random.hpp"

namespace moe::kernels {
namespace {

using test::is_close;
using test::Random;
using test::same_bits;

/// Weights whose rows are `gap` longer than they look.
template <class W>
struct Spaced {
  Weight<W> memory;
  Index cols;

  Spaced(Index rows, Index its_cols, Index gap, Random& random)
      : memory(random.matrix<Weight<W>>(rows, its_cols + gap)), cols(its_cols) {}
  WeightMap<W> map() const { return {memory.data(), memory.rows(), cols, Eigen::OuterStride<>(memory.cols())}; }
};

template <class W>
class AddProduct : public testing::Test {};
using Types = testing::Types<float, double, bfloat16, float16>;
TYPED_TEST_SUITE(AddProduct, Types);

std::vector<Index> sizes_around_a_tile(int lanes) {
  return {0, 1, 2, lanes - 1, lanes, 2 * lanes - 1, 2 * lanes, 2 * lanes + 1, 4 * lanes + 3};
}

TYPED_TEST(AddProduct, IsTheSumOfItsProducts) {
  using S = ActivationScalar<TypeParam>;
  Random random(1);
  Scratch scratch;
  for (const Index rows : {0, 1, 5, 6, 7, 11, 12, 13, 25, 145}) {
    for (const Index depth : {0, 1, 2, 7, 64, 255, 256, 257}) {
      for (const Index cols : sizes_around_a_tile(lanes<S>)) {
        if (rows > 13 && depth > 64) continue;  // seen with fewer rows
        const Matrix<S> a = random.matrix<Matrix<S>>(rows + 1, depth + 1), by_rows = a.transpose();
        const Spaced<TypeParam> b(depth, cols, 3, random);
        const Weight<S> before = random.matrix<Weight<S>>(rows, cols + 2);
        Weight<S> c = before, other = before;
        scratch.reset();
        S* const room = make_product_room<S>(scratch);
        add_product<TypeParam, S>({a.data(), 1, a.outerStride()}, rows, b.map(), c.data(), c.cols(), room);
        Weight<S> expected = before;
        expected.leftCols(cols) += a.topLeftCorner(rows, depth).lazyProduct(b.map().template cast<S>());
        ASSERT_TRUE(is_close(c, expected)) << rows << " × " << depth << " × " << cols;
        add_product<TypeParam, S>({by_rows.data(), by_rows.outerStride(), 1}, rows, b.map(), other.data(), other.cols(),
                                  room);
        ASSERT_TRUE(same_bits(c, other)) << rows << " × " << depth << " × " << cols;
      }
    }
  }
}

TYPED_TEST(AddProduct, SumsInOneOrderWhateverBandIsAskedFor) {
  using S = ActivationScalar<TypeParam>;
  Random random(2);
  Scratch scratch;
  S* const room = make_product_room<S>(scratch);
  const Index rows = 40, depth = 300, cols = 700;
  const Matrix<S> a = random.matrix<Matrix<S>>(rows, depth);
  const Spaced<TypeParam> b(depth, cols, 0, random);
  Weight<S> whole = Weight<S>::Zero(rows, cols), parts = whole;
  add_product<TypeParam, S>({a.data(), 1, rows}, rows, b.map(), whole.data(), cols, room);
  for (const auto& [top, height] : {std::pair<Index, Index>{0, 17}, {17, 1}, {18, 22}}) {
    for (const auto& [left, width] : {std::pair<Index, Index>{0, 5}, {5, 300}, {305, 395}}) {
      add_product<TypeParam, S>({a.data() + top, 1, rows}, height, columns_of_weight(b.map(), left, left + width),
                                &parts(top, left), cols, room);
    }
  }
  EXPECT_TRUE(same_bits(parts, whole));
}

}  // namespace
}  // namespace moe::kernels
