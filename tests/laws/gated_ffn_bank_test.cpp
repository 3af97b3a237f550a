#include "laws/experts_laws.hpp"

#include "errors.hpp"
#include "expert_factories.hpp"
#include "moe/experts/expert_subset.hpp"

namespace moe::laws {

/// Every other expert of a bank of twice as many.
template <class Factory>
struct SubsetsOf {
  static auto make(Index d_model, std::span<const unsigned> seeds) {
    std::vector<unsigned> all{99};
    std::vector<Index> named;
    for (const unsigned seed : seeds) {
      named.push_back(static_cast<Index>(all.size()));
      all.insert(all.end(), {seed, seed + 50});
    }
    return ExpertSubset(Factory::make(d_model, all), named);
  }
};

using Banks = testing::Types<test::GatedFfnBanks<double, SwiGlu, true>, test::GatedFfnBanks<float>,
                             test::GatedFfnBanks<bfloat16>, test::GatedFfnBanks<float16, GptOssGlu, true>,
                             test::MappedGatedFfnBanks<bfloat16>, SubsetsOf<test::GatedFfnBanks<float>>>;
INSTANTIATE_TYPED_TEST_SUITE_P(Library, ExpertsLaws, Banks);

TEST(GatedFfnBank, OfOneExpertIsThatGatedFfnToTheBit) {
  const unsigned seed[] = {5};
  for (const Index d_model : sizes) {
    const auto expert = test::GatedFfns<float, GptOssGlu, true>::make(d_model, seed[0]);
    const MoeLayer layer(router_for<float>(d_model, 1, 1),
                         test::GatedFfnBanks<float, GptOssGlu, true>::make(d_model, seed));
    for (const Index num_tokens : token_counts) {
      const auto x = random_matrix<Matrix<float>>(d_model, num_tokens, 1);
      Matrix<float> y(d_model, num_tokens);
      Scratch scratch;
      expert.forward(x, y, scratch);
      EXPECT_TRUE(same_bits(layer.forward(x), y)) << d_model << " wide, " << num_tokens << " tokens";
    }
  }
}

TEST(GatedFfnBank, IsTheListOfItsExpertsToTheBit) {
  const Numerics invariant{.batch_invariant = true};
  for (const Index d_model : sizes) {
    const auto seeds = seeds_from(1, 5);
    for (const WeightOn weight_on : {WeightOn::output, WeightOn::input}) {
      const auto router = router_for<float>(d_model, 5, 3, weight_on);
      const MoeLayer bank(router, test::GatedFfnBanks<float, GptOssGlu, true>::make(d_model, seeds));
      const MoeLayer list(router, ListOf<test::GatedFfns<float, GptOssGlu, true>>::make(d_model, seeds));
      for (const Index num_tokens : token_counts) {
        const auto x = random_matrix<Matrix<float>>(d_model, num_tokens, 1);
        Matrix<float> y(d_model, num_tokens), expected = y;
        Workspace<float> ws;
        ws.numerics = invariant;
        bank.forward(x, y, ws);
        list.forward(x, expected, ws);
        EXPECT_TRUE(same_bits(y, expected)) << d_model << " wide, " << num_tokens << " tokens";
      }
    }
  }
}

TEST(GatedFfnBank, MappedIsTheSameAsOwnedToTheBit) {
  for (const Index d_model : sizes) {
    const auto seeds = seeds_from(1, 3);
    const auto router = router_for<float>(d_model, 3, 2);
    const MoeLayer owned(router, test::GatedFfnBanks<bfloat16>::make(d_model, seeds));
    const MoeLayer mapped(router, test::MappedGatedFfnBanks<bfloat16>::make(d_model, seeds));
    for (const Index num_tokens : token_counts) {
      const auto x = random_matrix<Matrix<float>>(d_model, num_tokens, 1);
      EXPECT_TRUE(same_bits(mapped.forward(x), owned.forward(x))) << d_model << " wide, " << num_tokens << " tokens";
    }
  }
}

TEST(ExpertSubset, RefusesWhatIsNotAscending) {
  const auto bank = test::GatedFfnBanks<float>::make(4, seeds_from(1, 3));
  EXPECT_EQ(ExpertSubset(bank, {}).num_experts(), 0);
  EXPECT_EQ(test::error_of([&] { ExpertSubset(bank, {0, 3}); }), "ExpertSubset: experts[1] is 3, expected 1 to 2");
  EXPECT_EQ(test::error_of([&] { ExpertSubset(bank, {1, 1}); }), "ExpertSubset: experts[1] is 1, expected 2 to 2");
}

TEST(GatedFfnBank, DoesNotReadAnExpertThatNobodyChose) {
  const Index d_model = 9, d_ff = 17, num_experts = 3;
  const float nan = std::numeric_limits<float>::quiet_NaN();
  for (const Index num_tokens : token_counts) {
    const auto x = random_matrix<Matrix<float>>(d_model, num_tokens, 1);
    Routing<float> routing;
    for (Index t = 0; t < num_tokens; ++t) routing.add(t, 1, 0.5F);

    const auto weights = random_matrix<Weight<float>>(d_ff, d_model, 2),
               back = random_matrix<Weight<float>>(d_model, d_ff, 3);
    WeightStack<float> first(std::vector(3, weights.data()), d_ff, d_model),
        second(std::vector(3, back.data()), d_model, d_ff);
    for (const Index other : {0, 2}) {  // to read them would crash
      first.move(other, nullptr);
      second.move(other, nullptr);
    }
    const GatedFfnBank<float> bank(first, first, second);
    EXPECT_EQ(bank.num_experts(), num_experts);
    Matrix<float> y = Matrix<float>::Zero(d_model, num_tokens);
    apply(bank, x, routing, y);

    const GatedFfn<float> expert{.w_gate = weights, .w_up = weights, .w_down = back};
    Matrix<float> expected = Matrix<float>::Constant(d_model, num_tokens, nan);
    Scratch scratch;
    expert.forward(x, expected, scratch);
    EXPECT_TRUE(is_close(y, 0.5F * expected)) << num_tokens << " tokens";
  }
}

}  // namespace moe::laws
