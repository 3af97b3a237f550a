/// @file  What every layer must do, as a suite to run on a layer of your own.
///
///   #include "laws/layer_laws.hpp"  // first: it watches what is allocated
///   struct MyLayers {
///     static MyLayer make(moe::Index d_model);
///     static constexpr bool tokens_see_each_other = true;  // only if they do
///   };
///   namespace moe::laws { INSTANTIATE_TYPED_TEST_SUITE_P(Mine, LayerLaws, MyLayers); }
///
/// The concept Layer in any_layer.hpp says what a layer is.
#pragma once

#include "laws/common.hpp"

#include <limits>
#include <utility>

#include <gtest/gtest.h>

#include "errors.hpp"
#include "moe/any_layer.hpp"
#include "moe/executors/openmp.hpp"
#include "moe/executors/serial.hpp"
#include "moe/workspace.hpp"
#include "pools.hpp"

namespace moe::laws {

template <class Factory>
inline constexpr bool tokens_see_each_other = requires {
  requires Factory::tokens_see_each_other;
};

template <class Factory>
class LayerLaws : public testing::Test {
 public:
  using L = decltype(Factory::make(Index(1)));
  using Scalar = typename L::Scalar;
  static_assert(Layer<L>);

  static Matrix<Scalar> tokens(Index d_model, Index num_tokens, unsigned seed = 99) {
    return random_matrix<Matrix<Scalar>>(d_model, num_tokens, seed);
  }
  static Matrix<Scalar> answer(const L& layer, const Matrix<Scalar>& x, ExecutorRef executor = Serial{},
                               const Numerics& numerics = {}) {
    Matrix<Scalar> y = Matrix<Scalar>::Constant(x.rows(), x.cols(), std::numeric_limits<Scalar>::quiet_NaN());
    Workspace<Scalar> ws;
    ws.numerics = numerics;
    layer.forward(x, y, ws, executor);
    return y;
  }
};
TYPED_TEST_SUITE_P(LayerLaws);

TYPED_TEST_P(LayerLaws, TokensDoNotSeeEachOther) {
  using S = typename TestFixture::Scalar;
  if constexpr (tokens_see_each_other<TypeParam>) GTEST_SKIP() << "says that they do";
  for (const Index d_model : sizes) {
    const auto layer = TypeParam::make(d_model);
    for (const Index num_tokens : token_counts) {
      const auto x = this->tokens(d_model, num_tokens);
      Matrix<S> one_by_one(d_model, num_tokens);
      for (Index t = 0; t < num_tokens; ++t) one_by_one.col(t) = this->answer(layer, x.col(t));
      EXPECT_TRUE(is_close(this->answer(layer, x), one_by_one)) << d_model << " wide, " << num_tokens << " tokens";
    }
  }
}

TYPED_TEST_P(LayerLaws, WhereAskedTokensDoNotSeeEachOtherByASingleBit) {
  if constexpr (tokens_see_each_other<TypeParam>) GTEST_SKIP() << "says that they do";
  const Numerics invariant{.batch_invariant = true};
  for (const Index d_model : {5, 17, 67}) {
    const auto layer = TypeParam::make(d_model);
    const auto x = this->tokens(d_model, 150);  // enough that experts would turn their tokens into blocks
    const auto together = this->answer(layer, x, Serial{}, invariant);
    for (const auto& [first, count] : {std::pair<Index, Index>{0, 1}, {149, 1}, {3, 7}, {40, 33}, {1, 148}}) {
      const auto some = this->answer(layer, x.middleCols(first, count), test::Shuffled{3}, invariant);
      EXPECT_TRUE(same_bits(some, together.middleCols(first, count).eval()))
          << d_model << " wide, " << count << " tokens from " << first << " on";
    }
  }
}

TYPED_TEST_P(LayerLaws, NoExecutorChangesABit) {
  for (const Index d_model : {5, 17, 67}) {
    const auto layer = TypeParam::make(d_model);
    for (const Index num_tokens : token_counts) {
      const auto x = this->tokens(d_model, num_tokens);
      const auto serial = this->answer(layer, x);
      for (const Index workers : {1, 2, 3, 5, 8}) {
        EXPECT_TRUE(same_bits(this->answer(layer, x, test::Shuffled{workers}), serial)) << num_tokens << " tokens";
        EXPECT_TRUE(same_bits(this->answer(layer, x, test::open_mp(workers)), serial)) << num_tokens << " tokens";
      }
    }
  }
}

TYPED_TEST_P(LayerLaws, AUsedWorkspaceChangesNoBit) {
  using S = typename TestFixture::Scalar;
  const auto layer = TypeParam::make(9), other = TypeParam::make(33);
  Workspace<S> ws;
  for (const Index num_tokens : token_counts) {
    const auto x = this->tokens(9, num_tokens), z = this->tokens(33, 20);
    Matrix<S> y = x, u = z;
    other.forward(z, u, ws, test::open_mp(3));
    layer.forward(x, y, ws, Serial{});
    EXPECT_TRUE(same_bits(y, this->answer(layer, x))) << num_tokens << " tokens";
  }
}

TYPED_TEST_P(LayerLaws, WritesAllOfYAndNothingAroundIt) {
  using S = typename TestFixture::Scalar;
  const Index d_model = 17;
  const auto layer = TypeParam::make(d_model);
  for (const Index num_tokens : token_counts) {
    const auto x = this->tokens(d_model, num_tokens);
    // Rows of x and of y in turn, in one matrix: the columns lie between each other and share nothing.
    Matrix<S> both = this->tokens(2 * d_model + 3, num_tokens + 2, 5), expected;
    both.block(1, 1, d_model, num_tokens) = x;
    expected = both;
    expected.block(d_model + 2, 1, d_model, num_tokens) = this->answer(layer, x);
    Workspace<S> ws;
    layer.forward(both.block(1, 1, d_model, num_tokens), both.block(d_model + 2, 1, d_model, num_tokens), ws, Serial{});
    EXPECT_TRUE(same_bits(both, expected)) << num_tokens << " tokens";
  }
}

TYPED_TEST_P(LayerLaws, RefusesWrongShapesWithBothNumbers) {
  using S = typename TestFixture::Scalar;
  const auto layer = TypeParam::make(8);
  const auto complaint = [&](const Matrix<S>& x, Matrix<S> y) {
    Workspace<S> ws;
    const auto error = test::error_of([&] { layer.forward(x, y, ws, Serial{}); });
    const auto colon = error.find(": ");
    return colon == error.npos ? error : error.substr(colon + 2);  // without its name
  };
  EXPECT_EQ(complaint(Matrix<S>(7, 3), Matrix<S>(8, 3)), "x.rows() is 7, expected 8");
  EXPECT_EQ(complaint(Matrix<S>(8, 3), Matrix<S>(9, 3)), "y.rows() is 9, expected 8");
  EXPECT_EQ(complaint(Matrix<S>(8, 3), Matrix<S>(8, 2)), "y.cols() is 2, expected 3");
  EXPECT_EQ(complaint(Matrix<S>(7, 0), Matrix<S>(8, 0)), "x.rows() is 7, expected 8");
}

TYPED_TEST_P(LayerLaws, RefusesToWriteWhatItReads) {
  using S = typename TestFixture::Scalar;
  const auto layer = TypeParam::make(8);
  Matrix<S> memory = this->tokens(16, 6);
  const Matrix<S> before = memory;
  Workspace<S> ws;
  const auto complaint = [&](MatrixRef<S> x, MatrixRef<S> y) {
    return test::error_of([&] { layer.forward(x, y, ws, Serial{}); }).ends_with(": y overlaps x");
  };
  EXPECT_TRUE(complaint(memory.block(0, 0, 8, 6), memory.block(0, 0, 8, 6)));
  EXPECT_TRUE(complaint(memory.block(0, 0, 8, 6), memory.block(7, 0, 8, 6)));
  EXPECT_TRUE(complaint(memory.block(4, 0, 8, 5), memory.block(4, 1, 8, 5)));
  EXPECT_TRUE(same_bits(memory, before));
  EXPECT_FALSE(complaint(memory.block(0, 0, 8, 6), memory.block(8, 0, 8, 6)));
  EXPECT_FALSE(complaint(memory.block(0, 0, 8, 3), memory.block(0, 3, 8, 3)));
}

TYPED_TEST_P(LayerLaws, AWarmForwardAllocatesNothing) {
  using S = typename TestFixture::Scalar;
  if constexpr (may_allocate<TypeParam>) GTEST_SKIP() << "says that it may allocate";
  const auto layer = TypeParam::make(17);
  const auto watch = [&](ExecutorRef executor) {
    for (const Index num_tokens : token_counts) {
      Workspace<S> ws;
      const auto x = this->tokens(17, num_tokens);
      Matrix<S> y = x;
      for (int warming = 0; warming < 2; ++warming) layer.forward(x, y, ws, executor);
      EXPECT_EQ(test::allocations_in([&] { layer.forward(x, y, ws, executor); }), 0)
          << num_tokens << " tokens, " << executor.workers() << " workers";
    }
  };
  watch(Serial{});
  for (const Index workers : {2, 3}) watch(test::open_mp(workers));
}

REGISTER_TYPED_TEST_SUITE_P(LayerLaws, TokensDoNotSeeEachOther, WhereAskedTokensDoNotSeeEachOtherByASingleBit,
                            NoExecutorChangesABit, AUsedWorkspaceChangesNoBit, WritesAllOfYAndNothingAroundIt,
                            RefusesWrongShapesWithBothNumbers, RefusesToWriteWhatItReads, AWarmForwardAllocatesNothing);

/// No law, for the concept does not ask for it: the forms of forward() that return y, as all of our layers have.
template <class L>
void expect_forward_to_return_y(const L& layer) {
  using S = typename L::Scalar;
  const auto x = test::random_matrix<Matrix<S>>(layer.d_model(), 12, 3);
  Workspace<S> ws, other;
  Matrix<S> y(x.rows(), x.cols());
  layer.forward(x, y, ws);
  EXPECT_TRUE(test::same_bits(layer.forward(x), y));
  EXPECT_TRUE(test::same_bits(layer.forward(x, Serial{}), y));
  EXPECT_TRUE(test::same_bits(layer.forward(x, other), y));
  EXPECT_TRUE(test::same_bits(layer.forward(x, other, Serial{}), y));
  EXPECT_EQ(other.routing.expert, ws.routing.expert);
}

}  // namespace moe::laws
