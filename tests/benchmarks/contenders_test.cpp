#include "../../benchmarks/contenders.hpp"

#include <limits>

#include <gtest/gtest.h>

using namespace moe::bench;
using moe::Index;

namespace {

constexpr auto no_progress = [](double) {};

moe::MoeShape shape_with(Index d_ff_shared) {
  return {.d_model = 24,
          .d_ff = 40,
          .num_experts = 8,
          .top_k = 3,
          .d_ff_shared = d_ff_shared,
          .router = moe::TopKOptions{.top_k = 3, .renormalize = true}};
}

moe::Matrix<float> answer_of(Contender& contender, const moe::Matrix<float>& x) {
  moe::Matrix<float> y(x.rows(), x.cols());
  contender.forward(x, y);
  return y;
}

}  // namespace

/// All of these compute the same function, so that comparing their times is fair.
template <class W>
class SameLayer : public testing::Test {};
using WeightScalars = testing::Types<float, moe::bfloat16, moe::float16>;
TYPED_TEST_SUITE(SameLayer, WeightScalars);

TYPED_TEST(SameLayer, ByHandComputesWhatTheLayerComputes) {
  for (const Index d_ff_shared : {0, 16}) {
    const auto arena = make_arena<TypeParam>(shape_with(d_ff_shared), 2, 2, no_progress);
    const auto layer = make_contender(Kind::moe, arena), per_token = make_contender(Kind::eigen_per_token, arena),
               grouped = make_contender(Kind::eigen_grouped, arena);
    for (const Index tokens : {1, 7, 40, 7}) {  // layers of the arena take turns
      const moe::Matrix<float> x = random_tokens(24, tokens), expected = answer_of(*layer, x);
      const float tolerance =
          64 * std::numeric_limits<float>::epsilon() * (1 + expected.template lpNorm<Eigen::Infinity>());
      EXPECT_LE((answer_of(*per_token, x) - expected).template lpNorm<Eigen::Infinity>(), tolerance);
      EXPECT_LE((answer_of(*grouped, x) - expected).template lpNorm<Eigen::Infinity>(), tolerance);
    }
  }
}

TEST(Contenders, DenseOfEqualTotalSizeReadsWhatAllExpertsHold) {
  const auto arena = make_arena<float>(shape_with(16), 1, 1, no_progress);
  const auto dense = make_contender(Kind::dense_total, arena);
  answer_of(*dense, random_tokens(24, 5));
  EXPECT_EQ(dense->experts_work().bytes, 4 * 3 * 24 * (8 * 40 + 16));
  EXPECT_EQ(dense->experts_work().flops, 2 * 3 * 24 * (8 * 40 + 16) * 5);
}

TEST(Contenders, DenseOfEqualActiveSizeDoesWhatATokenOfTheSparseLayerDoes) {
  const auto arena = make_arena<moe::bfloat16>(shape_with(16), 1, 1, no_progress);
  const auto dense = make_contender(Kind::dense_active, arena), sparse = make_contender(Kind::moe, arena);
  answer_of(*dense, random_tokens(24, 1));
  answer_of(*sparse, random_tokens(24, 1));
  EXPECT_EQ(dense->experts_work().bytes, sparse->experts_work().bytes);
  EXPECT_EQ(dense->experts_work().flops, sparse->experts_work().flops);
}

TEST(Contenders, OnlyExpertsThatAreUsedCountAsRead) {
  const auto arena = make_arena<float>(shape_with(0), 1, 1, no_progress);
  for (const Kind kind : {Kind::moe, Kind::eigen_per_token, Kind::eigen_grouped}) {
    const auto contender = make_contender(kind, arena);
    answer_of(*contender, random_tokens(24, 1));
    EXPECT_EQ(contender->experts_work().bytes, 4 * 3 * 24 * 40 * 3) << name_of(kind);
    EXPECT_EQ(contender->router_work().bytes, 4 * 24 * 8) << name_of(kind);
  }
}

TEST(Arena, HoldsMoreLayersThanAnyCache) {
  const moe::MoeShape shape = moe::layer_shape("mixtral-small");
  const Index layers = layers_beyond_cache(shape, 4);
  EXPECT_GE(double(layers) * layer_bytes(shape, 4), 512e6);
  EXPECT_GE(double(layers) * layer_bytes(shape, 4), 2 * last_cache_bytes());
  EXPECT_GE(layers_beyond_cache(moe::layer_shape("mixtral-8x7b"), 4), 1);
}

TEST(Arena, TheSizeItAsksForHoldsTheWeightsAndTheLargestHiddenLayer) {
  const moe::MoeShape shape = moe::layer_shape("olmoe-1b-7b");
  EXPECT_GT(bytes_of_arena(shape, 1, 4, 1024), 4.0 * 3 * 2048 * 1024 * 64 + 4.0 * 1024 * 64 * 1024);
  EXPECT_LT(bytes_of_arena(shape, 1, 4, 1024), 4e9);
}

TEST(Tokens, DifferFromCallToCall) {
  Tokens tokens(8, 16);
  const moe::Matrix<float> first = tokens.next(4), second = tokens.next(4);
  EXPECT_NE(first, second);
  for (int i = 0; i < 1000; ++i) EXPECT_EQ(tokens.next(16).cols(), 16);  // it starts again when it is used up
}

TEST(Limit, IsTheLargerOfArithmeticAndReading) {
  const Limits limits{.fma_gflops = 100, .read_gbs = 10};
  EXPECT_DOUBLE_EQ(limit_seconds({.flops = 50e9, .bytes = 1e9}, limits), 0.5);
  EXPECT_DOUBLE_EQ(limit_seconds({.flops = 50e9, .bytes = 8e9}, limits), 0.8);
}

TEST(Limits, OfFastProductsAreTheirs) {
  const Limits limits{.fma_gflops = 100, .read_gbs = 10, .pairs_gflops = 200, .bytes_gflops = 400};
  const auto peak = [&](Kind kind, WeightType type) { return limits_of(kind, type, limits).fma_gflops; };
  for (const WeightType type : {WeightType::f32, WeightType::bf16, WeightType::q4_k}) {
    EXPECT_EQ(peak(Kind::moe, type), 100);
    EXPECT_EQ(peak(Kind::dense_active, type), 100);
  }
  EXPECT_EQ(peak(Kind::moe_fast, WeightType::f32), 100);
  EXPECT_EQ(peak(Kind::moe_fast, WeightType::bf16), 200);
  EXPECT_EQ(peak(Kind::moe_fast, WeightType::q4_k), 400);
  EXPECT_EQ(peak(Kind::moe_packed, WeightType::q4_k), 400);
  EXPECT_EQ(limits_of(Kind::moe_fast, WeightType::q4_k, limits).read_gbs, 10);
}
