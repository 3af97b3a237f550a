/// @file  What every expert must do, as a suite to run on an expert of your own.
///
///   #include "laws/expert_laws.hpp"   // first: they watch what is allocated
///   #include "laws/experts_laws.hpp"
///   struct MyExperts {  // the same seed makes the same expert; numbers of order one in, numbers of order one out
///     static MyExpert make(moe::Index d_model, unsigned seed);
///   };
///   namespace moe::laws {
///   INSTANTIATE_TYPED_TEST_SUITE_P(Mine, ExpertLaws, MyExperts);           // by itself
///   INSTANTIATE_TYPED_TEST_SUITE_P(Mine, ExpertsLaws, ListOf<MyExperts>);  // among others, in a layer
///   }
///
/// An expert that cannot help allocating while warm says so: `static constexpr bool may_allocate = true;`.
#pragma once

#include "laws/common.hpp"

#include <limits>
#include <vector>

#include <gtest/gtest.h>

#include "moe/concepts.hpp"
#include "moe/moe_layer.hpp"
#include "moe/scratch.hpp"

namespace moe::laws {

template <class Factory>
class ExpertLaws : public testing::Test {
 public:
  using E = decltype(Factory::make(Index(1), 1U));
  using Scalar = typename E::Scalar;
  static_assert(Expert<E>);

  static Matrix<Scalar> tokens(Index d_model, Index num_tokens, unsigned seed = 99) {
    return random_matrix<Matrix<Scalar>>(d_model, num_tokens, seed);
  }
  static Matrix<Scalar> answer(const E& expert, const Matrix<Scalar>& x) {
    Matrix<Scalar> y(x.rows(), x.cols());
    y.setConstant(std::numeric_limits<Scalar>::quiet_NaN());  // all of it has to be written
    Scratch scratch;
    expert.forward(x, y, scratch);
    return y;
  }
};
TYPED_TEST_SUITE_P(ExpertLaws);

TYPED_TEST_P(ExpertLaws, HasTheWidthItWasMadeWith) {
  for (const Index d_model : sizes) EXPECT_EQ(Index(TypeParam::make(d_model, 1).d_model()), d_model);
}

TYPED_TEST_P(ExpertLaws, MapsEachTokenByItself) {
  using S = typename TestFixture::Scalar;
  for (const Index d_model : sizes) {
    const auto expert = TypeParam::make(d_model, 1);
    for (const Index num_tokens : token_counts) {
      const auto x = this->tokens(d_model, num_tokens);
      Matrix<S> one_by_one(d_model, num_tokens);
      for (Index t = 0; t < num_tokens; ++t) one_by_one.col(t) = this->answer(expert, x.col(t));
      EXPECT_TRUE(is_close(this->answer(expert, x), one_by_one)) << d_model << " wide, " << num_tokens << " tokens";
    }
  }
}

TYPED_TEST_P(ExpertLaws, WritesAllOfYAndNothingAroundIt) {
  using S = typename TestFixture::Scalar;
  for (const Index d_model : sizes) {
    const auto expert = TypeParam::make(d_model, 1);
    for (const Index num_tokens : token_counts) {
      const auto x = this->tokens(d_model, num_tokens);
      Matrix<S> inside = this->tokens(d_model + 4, num_tokens + 2, 5);
      inside.block(1, 1, d_model, num_tokens) = x;
      Matrix<S> around = this->tokens(d_model + 6, num_tokens + 2, 6), before = around;
      Scratch scratch;
      expert.forward(inside.block(1, 1, d_model, num_tokens), around.block(3, 1, d_model, num_tokens), scratch);
      EXPECT_TRUE(is_close(around.block(3, 1, d_model, num_tokens), this->answer(expert, x)));
      around.block(3, 1, d_model, num_tokens) = before.block(3, 1, d_model, num_tokens);
      EXPECT_TRUE(same_bits(around, before)) << d_model << " wide, " << num_tokens << " tokens";
    }
  }
}

TYPED_TEST_P(ExpertLaws, GivesTheSameBitsWhateverIsLeftInTheScratch) {
  using S = typename TestFixture::Scalar;
  const Index d_model = 9;
  const auto expert = TypeParam::make(d_model, 1), other = TypeParam::make(d_model, 2);
  for (const Index num_tokens : token_counts) {
    const auto x = this->tokens(d_model, num_tokens), z = this->tokens(d_model, num_tokens, 98);
    Scratch scratch;
    Matrix<S> y(d_model, num_tokens);
    other.forward(z, y, scratch);
    scratch.reset();
    expert.forward(x, y, scratch);
    EXPECT_TRUE(same_bits(y, this->answer(expert, x))) << num_tokens << " tokens";
  }
}

TYPED_TEST_P(ExpertLaws, DiffersFromSeedToSeed) {
  const auto x = this->tokens(8, 3);
  EXPECT_FALSE(is_close(this->answer(TypeParam::make(8, 1), x), this->answer(TypeParam::make(8, 2), x)));
}

TYPED_TEST_P(ExpertLaws, AloneInALayerIsTheLayer) {
  using S = typename TestFixture::Scalar;
  for (const Index d_model : sizes) {
    const auto expert = TypeParam::make(d_model, 1);
    const MoeLayer layer(router_for<S>(d_model, 1, 1), std::vector{expert});
    for (const Index num_tokens : token_counts) {
      const auto x = this->tokens(d_model, num_tokens);
      EXPECT_TRUE(same_bits(layer.forward(x), this->answer(expert, x))) << d_model << ", " << num_tokens << " tokens";
    }
  }
}

REGISTER_TYPED_TEST_SUITE_P(ExpertLaws, HasTheWidthItWasMadeWith, MapsEachTokenByItself, WritesAllOfYAndNothingAroundIt,
                            GivesTheSameBitsWhateverIsLeftInTheScratch, DiffersFromSeedToSeed, AloneInALayerIsTheLayer);

}  // namespace moe::laws
