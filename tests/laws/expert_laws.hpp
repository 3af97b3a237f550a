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

#include "moe/core/concepts.hpp"
#include "moe/core/scratch.hpp"
#include "moe/experts/any_expert.hpp"
#include "moe/layers/moe_layer.hpp"

namespace moe::laws {

/// The laws by themselves, compiled once for each scalar: what they are about is erased.
template <class Scalar_>
class ExpertLawsOf : public testing::Test {
 public:
  using Scalar = Scalar_;

  void has_the_width_it_was_made_with();
  void maps_each_token_by_itself();
  void writes_all_of_y_and_nothing_around_it();
  void gives_the_same_bits_whatever_is_left_in_the_scratch();
  void differs_from_seed_to_seed();
  void alone_in_a_layer_is_the_layer();

 protected:
  virtual AnyExpert<Scalar> make(Index d_model, unsigned seed) const = 0;

  static Matrix<Scalar> tokens(Index d_model, Index num_tokens, unsigned seed = 99) {
    return random_matrix<Matrix<Scalar>>(d_model, num_tokens, seed);
  }
  static Matrix<Scalar> answer(const AnyExpert<Scalar>& expert, const Matrix<Scalar>& x) {
    Matrix<Scalar> y(x.rows(), x.cols());
    y.setConstant(std::numeric_limits<Scalar>::quiet_NaN());  // all of it has to be written
    Scratch scratch;
    expert.forward(x, y, scratch);
    return y;
  }
};

template <class Scalar>
void ExpertLawsOf<Scalar>::has_the_width_it_was_made_with() {
  for (const Index d_model : sizes) EXPECT_EQ(Index(make(d_model, 1).d_model()), d_model);
}

template <class Scalar>
void ExpertLawsOf<Scalar>::maps_each_token_by_itself() {
  for (const Index d_model : sizes) {
    const auto expert = make(d_model, 1);
    for (const Index num_tokens : token_counts) {
      const auto x = tokens(d_model, num_tokens);
      Matrix<Scalar> one_by_one(d_model, num_tokens);
      for (Index t = 0; t < num_tokens; ++t) one_by_one.col(t) = answer(expert, x.col(t));
      EXPECT_TRUE(is_close(answer(expert, x), one_by_one)) << d_model << " wide, " << num_tokens << " tokens";
    }
  }
}

template <class Scalar>
void ExpertLawsOf<Scalar>::writes_all_of_y_and_nothing_around_it() {
  for (const Index d_model : sizes) {
    const auto expert = make(d_model, 1);
    for (const Index num_tokens : token_counts) {
      const auto x = tokens(d_model, num_tokens);
      Matrix<Scalar> inside = tokens(d_model + 4, num_tokens + 2, 5);
      inside.block(1, 1, d_model, num_tokens) = x;
      Matrix<Scalar> around = tokens(d_model + 6, num_tokens + 2, 6), before = around;
      Scratch scratch;
      expert.forward(inside.block(1, 1, d_model, num_tokens), around.block(3, 1, d_model, num_tokens), scratch);
      EXPECT_TRUE(is_close(around.block(3, 1, d_model, num_tokens), answer(expert, x)));
      around.block(3, 1, d_model, num_tokens) = before.block(3, 1, d_model, num_tokens);
      EXPECT_TRUE(same_bits(around, before)) << d_model << " wide, " << num_tokens << " tokens";
    }
  }
}

template <class Scalar>
void ExpertLawsOf<Scalar>::gives_the_same_bits_whatever_is_left_in_the_scratch() {
  const Index d_model = 9;
  const auto expert = make(d_model, 1), other = make(d_model, 2);
  for (const Index num_tokens : token_counts) {
    const auto x = tokens(d_model, num_tokens), z = tokens(d_model, num_tokens, 98);
    Scratch scratch;
    Matrix<Scalar> y(d_model, num_tokens);
    other.forward(z, y, scratch);
    scratch.reset();
    expert.forward(x, y, scratch);
    EXPECT_TRUE(same_bits(y, answer(expert, x))) << num_tokens << " tokens";
  }
}

template <class Scalar>
void ExpertLawsOf<Scalar>::differs_from_seed_to_seed() {
  const auto x = tokens(8, 3);
  EXPECT_FALSE(is_close(answer(make(8, 1), x), answer(make(8, 2), x)));
}

template <class Scalar>
void ExpertLawsOf<Scalar>::alone_in_a_layer_is_the_layer() {
  for (const Index d_model : sizes) {
    const auto expert = make(d_model, 1);
    const MoeLayer layer(router_for<Scalar>(d_model, 1, 1), std::vector{expert});
    for (const Index num_tokens : token_counts) {
      const auto x = tokens(d_model, num_tokens);
      EXPECT_TRUE(same_bits(layer.forward(x), answer(expert, x))) << d_model << ", " << num_tokens << " tokens";
    }
  }
}

template <class Factory>
using ExpertOf = decltype(Factory::make(Index(1), 1U));

template <class Factory>
class ExpertLaws : public ExpertLawsOf<typename ExpertOf<Factory>::Scalar> {
  using Scalar = typename ExpertOf<Factory>::Scalar;
  static_assert(Expert<ExpertOf<Factory>>);

  AnyExpert<Scalar> make(Index d_model, unsigned seed) const override { return Factory::make(d_model, seed); }
};
TYPED_TEST_SUITE_P(ExpertLaws);
TYPED_TEST_P(ExpertLaws, HasTheWidthItWasMadeWith) { this->has_the_width_it_was_made_with(); }
TYPED_TEST_P(ExpertLaws, MapsEachTokenByItself) { this->maps_each_token_by_itself(); }
TYPED_TEST_P(ExpertLaws, WritesAllOfYAndNothingAroundIt) { this->writes_all_of_y_and_nothing_around_it(); }
TYPED_TEST_P(ExpertLaws, GivesTheSameBitsWhateverIsLeftInTheScratch) {
  this->gives_the_same_bits_whatever_is_left_in_the_scratch();
}
TYPED_TEST_P(ExpertLaws, DiffersFromSeedToSeed) { this->differs_from_seed_to_seed(); }
TYPED_TEST_P(ExpertLaws, AloneInALayerIsTheLayer) { this->alone_in_a_layer_is_the_layer(); }

REGISTER_TYPED_TEST_SUITE_P(ExpertLaws, HasTheWidthItWasMadeWith, MapsEachTokenByItself, WritesAllOfYAndNothingAroundIt,
                            GivesTheSameBitsWhateverIsLeftInTheScratch, DiffersFromSeedToSeed, AloneInALayerIsTheLayer);

#ifdef MOE_LAWS_ARE_COMPILED
extern template class ExpertLawsOf<float>;
extern template class ExpertLawsOf<double>;
#endif

}  // namespace moe::laws
