// Gradients of experts between two projections, and of adapters beside these.
#include "allocations.hpp"

#include "moe/train/experts/latent_experts.hpp"

#include <optional>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "compare.hpp"
#include "errors.hpp"
#include "latent_factories.hpp"
#include "laws/gradient_laws.hpp"
#include "laws/wrapper_laws.hpp"
#include "moe/moe.hpp"
#include "moe/train.hpp"
#include "random.hpp"
#include "train/factories.hpp"

namespace moe {
namespace {

using laws::expect_true_gradients;
using laws::gradients_of;
using test::is_close;
using test::random_bank;
using test::random_ffns;
using test::random_latent;
using test::random_matrix;
using test::random_projection;
using test::random_router;
using test::same_bits;

constexpr Index token_counts[] = {0, 1, 9, 40};

auto router_of(Index d_model, unsigned seed, WeightOn weight_on = WeightOn::output) {
  return random_router(4, d_model, {.top_k = 2, .score = Score::sigmoid, .weight_on = weight_on}, seed);
}

TEST(LatentGradients, AreTrue) {
  const std::optional<RmsNormOptions> norms[] = {{}, RmsNormOptions{.epsilon = 0.1, .offset = 1}};
  for (const auto& norm : norms) {
    for (const bool biases : {false, true}) {
      for (const WeightOn weight_on : {WeightOn::output, WeightOn::input}) {
        for (const Index tokens : token_counts) {
          for (const auto& of_answers : norms) {
            expect_true_gradients(
                MoeLayer(router_of(9, 1, weight_on),
                         random_latent<double>(9, random_bank(4, 6, 5, 2), 3, biases, norm, of_answers)),
                tokens, 4);
          }
        }
      }
    }
  }
  for (const Index d_model : laws::gradient_sizes) {
    const auto group =
        random_latent<double>(d_model, random_bank(4, test::latent_size(d_model), 5, 5, true), 6, true, norms[1]);
    expect_true_gradients(MoeLayer(router_of(d_model, 7), group), 7, 8, 10);
  }
}

TEST(LatentGradients, OfListsOfJoinedAndOfDroppedOnes) {
  expect_true_gradients(
      MoeLayer(router_of(9, 9),
               random_latent<double>(9, ExpertList(random_ffns<ReluSquared>(4, 6, 5, false, 10)), 11, true)),
      9, 12);
  const auto half = [](unsigned seed) { return random_latent<double>(9, random_bank(2, 6, 5, seed), seed + 1, true); };
  expect_true_gradients(MoeLayer(router_of(9, 13), JoinedExperts(half(14), half(15))), 9, 16);
  expect_true_gradients(MoeLayer(WithCapacity(router_of(9, 17), {.capacity = fixed_capacity(2)}),
                                 random_latent<double>(9, random_bank(4, 6, 5, 18), 19, true, RmsNormOptions{})),
                        9, 20);
  expect_true_gradients(
      WithSharedExpert(MoeLayer(router_of(9, 21), random_latent<double>(9, random_bank(4, 6, 5, 22), 23)),
                       random_bank(1, 9, 7, 24)),
      9, 25);
}

TEST(LatentGradients, PassThroughWhatDoesNotLearn) {
  const RmsNormOptions norm{.epsilon = 0.1};
  const auto whole = random_latent<double>(9, random_bank(4, 6, 5, 26), 27, true, norm, norm);
  const auto inside = random_latent<double>(9, Frozen(random_bank(4, 6, 5, 26)), 27, true, norm, norm);
  const auto router = router_of(9, 28);
  for (const Index tokens : token_counts) {
    expect_true_gradients(MoeLayer(router, Frozen(whole)), tokens, 29);
    expect_true_gradients(MoeLayer(router, inside), tokens, 29);
  }
  const auto x = random_matrix<Matrix<double>>(9, 20, 30), c = random_matrix<Matrix<double>>(9, 20, 31);
  const auto learning = gradients_of(MoeLayer(router, whole), x, c);
  const auto frozen = gradients_of(MoeLayer(router, Frozen(whole)), x, c);
  EXPECT_TRUE(same_bits(frozen.of_x, learning.of_x));
  EXPECT_TRUE(same_bits(frozen.of_parameters.router().weight(), learning.of_parameters.router().weight()));
}

/// Adapters beside both projections, and inside; all of them add something.
/// @param normed  are answers normed? Differences of what such numbers make of each other twice are too rough.
template <class W>
auto adapted(Index d_model, Index latent, double dropout = 0, Index rank = 2, bool normed = false) {
  using Scalar = ActivationScalar<W>;
  const LoraOptions options{.rank = rank, .dropout = dropout, .seed = 3};
  LatentExperts group(with_lora(random_projection<W>(latent, d_model, 32, true), options),
                      with_lora(moe::random_bank<W>(4, latent, 5, 33), {.rank = rank, .dropout = dropout}),
                      with_lora(random_projection<W>(d_model, latent, 34, true), options),
                      std::optional(RmsNorm<Scalar>(random_matrix<Vector<Scalar>>(latent, 1, 35), {.epsilon = 0.1})));
  if (normed)
    group.norm_of_answers().emplace(random_matrix<Vector<Scalar>>(latent, 1, 36), RmsNormOptions{.epsilon = 0.1});
  unsigned seed = 36;
  for (const auto& named : named_adapters("", group)) {
    named.adapter->b = random_matrix<Weight<Scalar>>(named.adapter->out(), named.adapter->rank(), ++seed);
  }
  return group;
}

TEST(LatentGradients, OfAdaptersBesideTheProjections) {
  for (const Index tokens : token_counts) {
    expect_true_gradients(MoeLayer(router_of(9, 50), adapted<double>(9, 6)), tokens, 51, 20);
    expect_true_gradients(MoeLayer(router_of(9, 50), adapted<double>(9, 6, 0.5)), tokens, 51, 20, {.seed = 7});
  }
  expect_true_gradients(MoeLayer(router_of(9, 50), adapted<double>(9, 6, 0, 0)), 9, 51);  // the norm and router learn
}

TEST(LatentGradients, OfAdaptersBelowANormOfAnswersAreThoseOfMergedWeights) {
  const MoeLayer layer(router_of(9, 50), adapted<double>(9, 6, 0, 2, true));
  const auto x = random_matrix<Matrix<double>>(9, 20, 53), c = random_matrix<Matrix<double>>(9, 20, 54);
  const auto is = gradients_of(layer, x, c);
  const auto expected = gradients_of(merged(layer), x, c);
  EXPECT_LT((is.of_x - expected.of_x).norm(), 1e-10 * expected.of_x.norm());
  const auto gain = [](const auto& of) { return of.of_parameters.experts().norm_of_answers()->gain(); };
  EXPECT_LT((gain(is) - gain(expected)).norm(), 1e-10 * gain(expected).norm());
  EXPECT_GT(gain(is).norm(), 0);
}

template <class W>
class LatentLora : public testing::Test {};
using Types = testing::Types<double, float, bfloat16, float16>;
TYPED_TEST_SUITE(LatentLora, Types);

/// The projection with its delta, summed in full.
template <class W>
auto naive_twin(const LoraProjection<W>& projection) {
  using Scalar = ActivationScalar<W>;
  Weight<Scalar> sum = projection.base().weight().template cast<Scalar>();
  const auto& adapter = projection.adapter();
  for (Index k = 0; k < adapter.rank(); ++k) sum += adapter.scale() * adapter.b.col(k) * adapter.a.row(k);
  return Projection<Scalar>(sum, projection.base().bias());
}

TYPED_TEST(LatentLora, ComputesWhatWeightsWithTheirDeltasDo) {
  using Scalar = ActivationScalar<TypeParam>;
  for (const Index d_model : {1, 7, 16, 33}) {
    const auto group = adapted<TypeParam>(d_model, test::latent_size(d_model), 0, 2, true);
    const LatentExperts expected(naive_twin(group.in()), group.experts(), naive_twin(group.out()), group.norm(), {},
                                 group.norm_of_answers());
    const auto router = random_router<Scalar>(4, d_model, {.top_k = 2}, 52);
    for (const Index tokens : {0, 1, 15, 16, 17, 40}) {
      const auto x = random_matrix<Matrix<Scalar>>(d_model, tokens, 53);
      EXPECT_TRUE(is_close(MoeLayer(router, group).forward(x), MoeLayer(router, expected).forward(x)))
          << d_model << ", " << tokens;
    }
  }
}

TYPED_TEST(LatentLora, ThatAddsNothingIsTheProjectionToTheLastBit) {
  using Scalar = ActivationScalar<TypeParam>;
  const auto in = random_projection<TypeParam>(9, 17, 54, true), out = random_projection<TypeParam>(17, 9, 55, true);
  const auto bank = moe::random_bank<TypeParam>(4, 9, 5, 56);
  const auto router = random_router<Scalar>(4, 17, {.top_k = 2}, 57);
  for (const Index rank : {0, 3}) {
    const LatentExperts fresh(with_lora(in, {.rank = rank}), bank, with_lora(out, {.rank = rank}));
    const auto x = random_matrix<Matrix<Scalar>>(17, 20, 58);
    EXPECT_TRUE(
        same_bits(MoeLayer(router, fresh).forward(x), MoeLayer(router, LatentExperts(in, bank, out)).forward(x)));
  }
}

TEST(LatentLora, NarrowProjectionsStayAsTheyAreAndMergeIntoWeightsOfTheirOwn) {
  const MoeLayer layer(random_router<float>(4, 17, {.top_k = 2}, 59), adapted<bfloat16>(17, 9, 0, 2, true));
  const auto plain = merged(layer);
  static_assert(std::is_same_v<std::remove_cvref_t<decltype(plain.experts().in())>, Projection<bfloat16>>);
  const auto x = random_matrix<Matrix<float>>(17, 20, 60);
  const auto y = layer.forward(x);
  EXPECT_LT((plain.forward(x) - y).norm(), 0.02F * y.norm());  // each weight is rounded to bfloat16 once
  auto learning = layer;
  std::string names;
  for (const auto& parameter : parameters(learning)) {
    const bool is_around = parameter.name.find("latent") != std::string::npos || parameter.name.starts_with("routed_");
    if (is_around) names += parameter.name + " ";
  }
  EXPECT_EQ(names,
            "fc1_latent_proj.lora_A.weight fc1_latent_proj.lora_B.weight latent_norm.weight routed_expert_norm.weight "
            "fc2_latent_proj.lora_A.weight fc2_latent_proj.lora_B.weight ");
  const auto gradients = gradients_of(learning, x, y);
  EXPECT_FALSE(gradients.of_parameters.experts().in().adapter().a.isZero());
  EXPECT_EQ(&gradients.of_parameters.experts().in().base(), &learning.experts().in().base());  // shared, not copied
}

TEST(LatentLora, RefusesWhatDoesNotFit) {
  const auto projection = random_projection<float>(6, 9, 61);
  EXPECT_EQ(test::error_of([&] { LoraProjection<float>(projection, make_adapter<float>(6, 8, 2, 1, 1)); }),
            "LoraProjection: lora_A.cols() is 8, expected 9");
  EXPECT_EQ(test::error_of([&] { with_lora(projection, {.dropout = 1}); }),
            "LoraProjection: dropout is 1.000000, expected 0 to below 1");
}

TEST(LatentSteps, HaveTheSameBitsOnAnyNumberOfThreadsAndAllocateNothingOnceWarm) {
  const auto check = [](const auto& layer) {
    laws::expect_the_same_bits_for_any_number_of_threads(layer);
    laws::expect_warm_steps_to_allocate_nothing(layer);
  };
  const auto router = random_router<float>(4, 40, {.top_k = 2}, 62);
  check(MoeLayer(router, random_latent<float>(40, random_bank<float>(4, 21, 33, 63), 64, true, RmsNormOptions{},
                                              RmsNormOptions{})));
  check(MoeLayer(router, adapted<bfloat16>(40, 21)));
}

TEST(LatentWrappers, PassEverythingOn) {
  laws::expect_to_pass_everything_on(MoeLayer(
      with_lora(random_router(4, 12, {.top_k = 2}, 65), {.rank = 2, .dropout = 0.5}), adapted<double>(12, 7, 0.5)));
}

}  // namespace
}  // namespace moe
