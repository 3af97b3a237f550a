#include "../../benchmarks/coded_pool.hpp"

#include <optional>

#include <gtest/gtest.h>

#include "../../benchmarks/answer_error.hpp"
#include "../../benchmarks/contenders.hpp"

using namespace moe::bench;
using moe::Index;

namespace {

constexpr auto no_progress = [](double) {};

/// As small as all blocks divide.
const moe::MoeShape shape{.d_model = 256,
                          .d_ff = 512,
                          .num_experts = 3,
                          .top_k = 2,
                          .d_ff_shared = 256,
                          .router = moe::TopKOptions{.top_k = 2, .renormalize = true}};

Arena<moe::Quantized> arena_of(WeightType type) { return make_arena<moe::Quantized>(type, shape, 2, 1, no_progress); }

moe::GatedFfnBank<moe::Quantized> coded_alone(WeightType type, Index first_unit, Index d_ff) {
  const auto floats = make_weight_pool<float>(shape.d_model, d_ff, moe::Serial(), no_progress, first_unit);
  return coded_bank(type, experts_in(floats, 0, d_ff, 1), moe::Serial());
}

void expect_same(const moe::GatedFfnBank<moe::Quantized>& bank, Index e,
                 const moe::GatedFfnBank<moe::Quantized>& alone) {
  EXPECT_EQ(moe::dequantized(bank.w_gate()[e]), moe::dequantized(alone.w_gate()[0]));
  EXPECT_EQ(moe::dequantized(bank.w_up()[e]), moe::dequantized(alone.w_up()[0]));
  EXPECT_EQ(moe::dequantized(bank.w_down()[e]), moe::dequantized(alone.w_down()[0]));
}

}  // namespace

TEST(CodedPool, HasInEveryLayerWhatTheQuantiserMakesOfTheFloatArenasFirstExperts) {
  for (const auto& [type, name, bits] : weight_types) {
    if (!is_coded(type)) continue;
    SCOPED_TRACE(name);
    const auto arena = arena_of(type);
    EXPECT_DOUBLE_EQ(8 * arena.pool->bytes_a_weight(), bits);
    const auto expert = coded_alone(type, 0, shape.d_ff);
    const auto shared = coded_alone(type, shape.num_experts * shape.d_ff, shape.d_ff_shared);
    for (Index l = 0; l < arena.num_layers(); ++l) {
      const auto experts = experts_of(arena, l);
      for (Index e = 0; e < shape.num_experts; ++e) expect_same(experts, e, expert);
      expect_same(shared_expert_of(arena, l), 0, shared);
    }
  }
}

TEST(CodedPool, ShapesThatBlocksDoNotDivideAreRefused) {
  moe::MoeShape odd = shape;
  odd.d_model = 128;
  try {
    make_arena<moe::Quantized>(WeightType::q4_k, odd, 1, 1, no_progress);
    FAIL();
  } catch (const std::invalid_argument& error) {
    EXPECT_STREQ(error.what(),
                 "quantize: w_gate of expert 0: the length of a row is 128, expected a multiple of 256, the block of "
                 "Q4_K");
  }
}

TEST(CodedPool, DenseFfnsReadAsManyBytesAsTheExpertsOfASparseLayer) {
  const auto arena = arena_of(WeightType::nvfp4);
  const moe::Matrix<float> x = random_tokens(shape.d_model, 1);
  moe::Matrix<float> y(shape.d_model, 1);
  const auto dense = make_contender(Kind::dense_active, arena), sparse = make_contender(Kind::moe, arena);
  for (Contender* contender : {dense.get(), sparse.get()}) {
    contender->forward(x, y);
    EXPECT_TRUE(y.allFinite());
    EXPECT_EQ(contender->experts_work().bytes, 4.5 / 8 * 3 * 256 * (2 * 512 + 256));
  }
}

TEST(CodedPool, EigenHasNoProductsOfCodedWeights) {
  const auto arena = arena_of(WeightType::q8_0);
  for (const Kind kind : kinds) EXPECT_EQ(make_contender(kind, arena) == nullptr, is_by_hand(kind)) << name_of(kind);
}

TEST(AnswerError, IsThatOfTheWeights) {
  const auto floats = make_arena<float>(shape, 1, 1, no_progress);
  EXPECT_EQ(answer_error(floats), 0);
  const double bf16 = answer_error(make_arena<moe::bfloat16>(shape, 1, 1, no_progress));
  const double q8 = answer_error(arena_of(WeightType::q8_0)), q4 = answer_error(arena_of(WeightType::q4_0));
  EXPECT_GT(bf16, 2e-4);  // 2^-9 at most, of each number
  EXPECT_LT(bf16, 4e-3);
  EXPECT_GT(q8, bf16);
  EXPECT_GT(q4, 8 * q8);  // steps sixteen times as wide
  EXPECT_LT(q4, 0.3);
  const double iq4_xs = answer_error(arena_of(WeightType::iq4_xs)), iq4_nl = answer_error(arena_of(WeightType::iq4_nl));
  EXPECT_GT(iq4_xs, 0.9 * iq4_nl);  // the same numbers, and scales of 6 bits instead of 16
  EXPECT_LT(iq4_xs, 1.1 * iq4_nl);
}
