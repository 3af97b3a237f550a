#include "laws/router_laws.hpp"

#include "moe/routers/filters/merged_experts.hpp"

#include <string>
#include <vector>

#include "errors.hpp"
#include "expert_factories.hpp"
#include "moe/routers/filters/capacity.hpp"
#include "naive.hpp"

namespace moe::laws {

struct MergedRouters {
  static WithMergedExperts<LinearTopK<float>> make(Index d_model) {
    return {router_for<float>(d_model, 5, 3), {0, 1, 0, 2, 1}};
  }
};
INSTANTIATE_TYPED_TEST_SUITE_P(WithMergedExperts, RouterLaws, MergedRouters);
INSTANTIATE_TYPED_TEST_SUITE_P(WithMergedExperts, TokenChoiceLaws, MergedRouters);

namespace {

const std::vector<Index> numbers{0, 1, 0, 2, 1};

TEST(WithMergedExperts, GivesAnExpertTheSumOfWhatItsMembersHad) {
  const auto router = router_for<double>(9, 5, 3);
  const auto x = random_matrix<Matrix<double>>(9, 40, 1);
  const auto before = route(router, x), after = route(WithMergedExperts(router, numbers), x);
  Matrix<double> sums = Matrix<double>::Zero(3, 40);
  const Matrix<double> weights = weights_of(before, 5, 40);
  for (Index e = 0; e < 5; ++e) sums.row(numbers[std::size_t(e)]) += weights.row(e);
  EXPECT_TRUE(weights_of(after, 3, 40).isApprox(sums, 1e-14));
  EXPECT_EQ(after.size(), (sums.array() > 0).count());  // one route each
  EXPECT_LT(after.size(), before.size());
  EXPECT_TRUE(after.logits.empty());
}

TEST(WithMergedExperts, LeavesWeightsOnInputsApart) {
  const auto router = router_for<double>(9, 5, 3, WeightOn::input);
  const auto x = random_matrix<Matrix<double>>(9, 40, 1);
  EXPECT_EQ(route(WithMergedExperts(router, numbers), x).size(), 120);
}

TEST(WithMergedExperts, LeavesDroppedRoutesDropped) {
  const WithCapacity limited(router_for<double>(9, 5, 3), {.capacity = fixed_capacity(8)});
  const auto x = random_matrix<Matrix<double>>(9, 40, 1);
  const auto before = route(limited, x), after = route(WithMergedExperts(limited, numbers), x);
  EXPECT_GT(before.num_dropped(), 0);
  EXPECT_EQ(after.num_dropped(), before.num_dropped());
  double sum_before = 0, sum_after = 0;
  for (Index r = 0; r < before.size(); ++r) sum_before += before.is_dropped(r) ? 0 : before.weight[std::size_t(r)];
  for (Index r = 0; r < after.size(); ++r) sum_after += after.is_dropped(r) ? 0 : after.weight[std::size_t(r)];
  EXPECT_NEAR(sum_after, sum_before, 1e-12);
}

TEST(WithMergedExperts, RefusesNumbersThatAreMissing) {
  const auto error_with = [](const std::vector<Index>& merged) {
    return test::error_of([&] { WithMergedExperts(router_for<float>(9, 3, 1), merged); });
  };
  EXPECT_EQ(error_with({0, 1}), "WithMergedExperts: merged.size() is 2, expected 3");
  EXPECT_EQ(error_with({0, 2, 0}), "WithMergedExperts: no expert is merged into 1 of 3");
  EXPECT_EQ(error_with({0, -1, 0}), "WithMergedExperts: merged is -1, expected 0 to 0");
}

}  // namespace
}  // namespace moe::laws
