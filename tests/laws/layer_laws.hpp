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
#include "moe/layers/any_layer.hpp"
#include "moe/runtime/executors/openmp.hpp"
#include "moe/runtime/executors/serial.hpp"
#include "moe/runtime/workspace.hpp"
#include "pools.hpp"

namespace moe::laws {

template <class Factory>
inline constexpr bool tokens_see_each_other = requires { requires Factory::tokens_see_each_other; };

/// The laws by themselves, compiled once for each scalar: what they are about is erased.
template <class Scalar_>
class LayerLawsOf : public testing::Test {
 public:
  using Scalar = Scalar_;

  void tokens_do_not_see_each_other();
  void where_asked_tokens_do_not_see_each_other_by_a_single_bit();
  void no_executor_changes_a_bit();
  void a_used_workspace_changes_no_bit();
  void writes_all_of_y_and_nothing_around_it();
  void refuses_wrong_shapes_with_both_numbers();
  void refuses_to_write_what_it_reads();
  void a_warm_forward_allocates_nothing();

 protected:
  virtual AnyLayer<Scalar> make(Index d_model) const = 0;
  virtual bool may_allocate() const = 0;
  virtual bool tokens_see_each_other() const = 0;

  static Matrix<Scalar> tokens(Index d_model, Index num_tokens, unsigned seed = 99) {
    return random_matrix<Matrix<Scalar>>(d_model, num_tokens, seed);
  }
  static Matrix<Scalar> answer(const AnyLayer<Scalar>& layer, const Matrix<Scalar>& x, ExecutorRef executor = Serial{},
                               const Numerics& numerics = {}) {
    Matrix<Scalar> y = Matrix<Scalar>::Constant(x.rows(), x.cols(), std::numeric_limits<Scalar>::quiet_NaN());
    Workspace<Scalar> ws;
    ws.numerics = numerics;
    layer.forward(x, y, ws, executor);
    return y;
  }
};

template <class Scalar>
void LayerLawsOf<Scalar>::tokens_do_not_see_each_other() {
  if (tokens_see_each_other()) GTEST_SKIP() << "says that they do";
  for (const Index d_model : sizes) {
    const auto layer = make(d_model);
    for (const Index num_tokens : token_counts) {
      const auto x = tokens(d_model, num_tokens);
      Matrix<Scalar> one_by_one(d_model, num_tokens);
      for (Index t = 0; t < num_tokens; ++t) one_by_one.col(t) = answer(layer, x.col(t));
      EXPECT_TRUE(is_close(answer(layer, x), one_by_one)) << d_model << " wide, " << num_tokens << " tokens";
    }
  }
}

template <class Scalar>
void LayerLawsOf<Scalar>::where_asked_tokens_do_not_see_each_other_by_a_single_bit() {
  if (tokens_see_each_other()) GTEST_SKIP() << "says that they do";
  const Numerics invariant{.batch_invariant = true};
  for (const Index d_model : {5, 17, 67}) {
    const auto layer = make(d_model);
    const auto x = tokens(d_model, 150);  // enough that experts would turn their tokens into blocks
    const auto together = answer(layer, x, Serial{}, invariant);
    for (const auto& [first, count] : {std::pair<Index, Index>{0, 1}, {149, 1}, {3, 7}, {40, 33}, {1, 148}}) {
      const auto some = answer(layer, x.middleCols(first, count), test::Shuffled{3}, invariant);
      EXPECT_TRUE(same_bits(some, together.middleCols(first, count).eval()))
          << d_model << " wide, " << count << " tokens from " << first << " on";
    }
  }
}

template <class Scalar>
void LayerLawsOf<Scalar>::no_executor_changes_a_bit() {
  for (const Index d_model : {5, 17, 67}) {
    const auto layer = make(d_model);
    for (const Index num_tokens : token_counts) {
      const auto x = tokens(d_model, num_tokens);
      const auto serial = answer(layer, x);
      for (const Index workers : {1, 2, 3, 5, 8}) {
        EXPECT_TRUE(same_bits(answer(layer, x, test::Shuffled{workers}), serial)) << num_tokens << " tokens";
        EXPECT_TRUE(same_bits(answer(layer, x, test::open_mp(workers)), serial)) << num_tokens << " tokens";
      }
    }
  }
}

template <class Scalar>
void LayerLawsOf<Scalar>::a_used_workspace_changes_no_bit() {
  const auto layer = make(9), other = make(33);
  Workspace<Scalar> ws;
  for (const Index num_tokens : token_counts) {
    const auto x = tokens(9, num_tokens), z = tokens(33, 20);
    Matrix<Scalar> y = x, u = z;
    other.forward(z, u, ws, test::open_mp(3));
    layer.forward(x, y, ws, Serial{});
    EXPECT_TRUE(same_bits(y, answer(layer, x))) << num_tokens << " tokens";
  }
}

template <class Scalar>
void LayerLawsOf<Scalar>::writes_all_of_y_and_nothing_around_it() {
  const Index d_model = 17;
  const auto layer = make(d_model);
  for (const Index num_tokens : token_counts) {
    const auto x = tokens(d_model, num_tokens);
    // Rows of x and of y in turn, in one matrix: the columns lie between each other and share nothing.
    Matrix<Scalar> both = tokens(2 * d_model + 3, num_tokens + 2, 5), expected;
    both.block(1, 1, d_model, num_tokens) = x;
    expected = both;
    expected.block(d_model + 2, 1, d_model, num_tokens) = answer(layer, x);
    Workspace<Scalar> ws;
    layer.forward(both.block(1, 1, d_model, num_tokens), both.block(d_model + 2, 1, d_model, num_tokens), ws, Serial{});
    EXPECT_TRUE(same_bits(both, expected)) << num_tokens << " tokens";
  }
}

template <class Scalar>
void LayerLawsOf<Scalar>::refuses_wrong_shapes_with_both_numbers() {
  const auto layer = make(8);
  const auto complaint = [&](const Matrix<Scalar>& x, Matrix<Scalar> y) {
    Workspace<Scalar> ws;
    const auto error = test::error_of([&] { layer.forward(x, y, ws, Serial{}); });
    const auto colon = error.find(": ");
    return colon == error.npos ? error : error.substr(colon + 2);  // without its name
  };
  EXPECT_EQ(complaint(Matrix<Scalar>(7, 3), Matrix<Scalar>(8, 3)), "x.rows() is 7, expected 8");
  EXPECT_EQ(complaint(Matrix<Scalar>(8, 3), Matrix<Scalar>(9, 3)), "y.rows() is 9, expected 8");
  EXPECT_EQ(complaint(Matrix<Scalar>(8, 3), Matrix<Scalar>(8, 2)), "y.cols() is 2, expected 3");
  EXPECT_EQ(complaint(Matrix<Scalar>(7, 0), Matrix<Scalar>(8, 0)), "x.rows() is 7, expected 8");
}

template <class Scalar>
void LayerLawsOf<Scalar>::refuses_to_write_what_it_reads() {
  const auto layer = make(8);
  Matrix<Scalar> memory = tokens(16, 6);
  const Matrix<Scalar> before = memory;
  Workspace<Scalar> ws;
  const auto complaint = [&](MatrixRef<Scalar> x, MatrixRef<Scalar> y) {
    return test::error_of([&] { layer.forward(x, y, ws, Serial{}); }).ends_with(": y overlaps x");
  };
  EXPECT_TRUE(complaint(memory.block(0, 0, 8, 6), memory.block(0, 0, 8, 6)));
  EXPECT_TRUE(complaint(memory.block(0, 0, 8, 6), memory.block(7, 0, 8, 6)));
  EXPECT_TRUE(complaint(memory.block(4, 0, 8, 5), memory.block(4, 1, 8, 5)));
  EXPECT_TRUE(same_bits(memory, before));
  EXPECT_FALSE(complaint(memory.block(0, 0, 8, 6), memory.block(8, 0, 8, 6)));
  EXPECT_FALSE(complaint(memory.block(0, 0, 8, 3), memory.block(0, 3, 8, 3)));
}

template <class Scalar>
void LayerLawsOf<Scalar>::a_warm_forward_allocates_nothing() {
  if (may_allocate()) GTEST_SKIP() << "says that it may allocate";
  const auto layer = make(17);
  const auto watch = [&](ExecutorRef executor) {
    for (const Index num_tokens : token_counts) {
      Workspace<Scalar> ws;
      const auto x = tokens(17, num_tokens);
      Matrix<Scalar> y = x;
      for (int warming = 0; warming < 2; ++warming) layer.forward(x, y, ws, executor);
      EXPECT_EQ(test::allocations_in([&] { layer.forward(x, y, ws, executor); }), 0)
          << num_tokens << " tokens, " << executor.workers() << " workers";
    }
  };
  watch(Serial{});
  for (const Index workers : {2, 3}) watch(test::open_mp(workers));
}

template <class Factory>
using LayerOf = decltype(Factory::make(Index(1)));

template <class Factory>
class LayerLaws : public LayerLawsOf<typename LayerOf<Factory>::Scalar> {
  static_assert(Layer<LayerOf<Factory>>);

  AnyLayer<typename LayerOf<Factory>::Scalar> make(Index d_model) const override { return Factory::make(d_model); }
  bool may_allocate() const override { return laws::may_allocate<Factory>; }
  bool tokens_see_each_other() const override { return laws::tokens_see_each_other<Factory>; }
};
TYPED_TEST_SUITE_P(LayerLaws);
TYPED_TEST_P(LayerLaws, TokensDoNotSeeEachOther) { this->tokens_do_not_see_each_other(); }
TYPED_TEST_P(LayerLaws, WhereAskedTokensDoNotSeeEachOtherByASingleBit) {
  this->where_asked_tokens_do_not_see_each_other_by_a_single_bit();
}
TYPED_TEST_P(LayerLaws, NoExecutorChangesABit) { this->no_executor_changes_a_bit(); }
TYPED_TEST_P(LayerLaws, AUsedWorkspaceChangesNoBit) { this->a_used_workspace_changes_no_bit(); }
TYPED_TEST_P(LayerLaws, WritesAllOfYAndNothingAroundIt) { this->writes_all_of_y_and_nothing_around_it(); }
TYPED_TEST_P(LayerLaws, RefusesWrongShapesWithBothNumbers) { this->refuses_wrong_shapes_with_both_numbers(); }
TYPED_TEST_P(LayerLaws, RefusesToWriteWhatItReads) { this->refuses_to_write_what_it_reads(); }
TYPED_TEST_P(LayerLaws, AWarmForwardAllocatesNothing) { this->a_warm_forward_allocates_nothing(); }

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

#ifdef MOE_LAWS_ARE_COMPILED
extern template class LayerLawsOf<float>;
extern template class LayerLawsOf<double>;
#endif

}  // namespace moe::laws
