#include "laws/expert_laws.hpp"
#include "laws/experts_laws.hpp"

#include "expert_factories.hpp"

namespace moe::laws {

// AnyExperts<float> are Ffn<float>, GatedFfn<float> and a function in turn.
using Each = testing::Types<test::Ffns<double, Silu>, test::Ffns<bfloat16, GeluTanh>, test::GatedFfns<double, GeGlu>,
                            test::GatedFfns<float16>, test::AnyExperts<float>, test::FunctionExperts<double>>;
INSTANTIATE_TYPED_TEST_SUITE_P(Library, ExpertLaws, Each);

using Lists = testing::Types<ListOf<test::Ffns<double, Silu>>, ListOf<test::GatedFfns<double, GeGlu>>,
                             ListOf<test::AnyExperts<float>>, ListOf<test::FunctionExperts<double>>>;
INSTANTIATE_TYPED_TEST_SUITE_P(Library, ExpertsLaws, Lists);

TEST(ExpertList, DoesNotCallAnExpertThatNobodyChose) {
  const Index d_model = 4;
  std::vector<int> calls(3, 0);
  std::vector<AnyExpert<float>> experts;
  for (int& count : calls) {
    experts.push_back(expert_from<float>(d_model, [&count](const auto& x, auto y) {
      ++count;
      y = x;
    }));
  }
  const ExpertList group(experts);
  Routing<float> routing;
  for (const Index token : {0, 1, 2, 1}) routing.add(token, 2, 1);
  Matrix<float> y = Matrix<float>::Zero(d_model, 3);
  apply(group, random_matrix<Matrix<float>>(d_model, 3, 1), routing, y);
  EXPECT_EQ(calls, (std::vector{0, 0, 1}));  // and one that was chosen hears of all its tokens at once
}

}  // namespace moe::laws
