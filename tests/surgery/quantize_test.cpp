/// @file  Banks made of few bits: errors, importance, choices, what is refused.
#include <moe/experts/gated_ffn_bank.hpp>
#include <moe/formats/encode.hpp>
#include <moe/layers/moe_layer.hpp>
#include <moe/models/random.hpp>
#include <moe/routers/linear_top_k.hpp>
#include <moe/runtime/executors/openmp.hpp>
#include <moe/surgery/change_report.hpp>
#include <moe/surgery/quantize.hpp>

#include <cmath>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "errors.hpp"
#include "quantized_blocks.hpp"

namespace moe::inline MOE_TARGET {

/// Of a format from outside: all that quantize() needs beside the block itself.
template <>
struct Encoder<test::Bytes8> {
  static constexpr Index numbers = 8, bytes = 12;
  static void encode(const float* x, const float* importance, std::byte* block) {
    float largest = 0;
    for (Index i = 0; i < 8; ++i) {
      if (importance == nullptr || importance[i] > 0) largest = std::max(largest, std::fabs(x[i]));
    }
    const float scale = largest / 127;
    std::memcpy(block, &scale, sizeof scale);
    for (Index i = 0; i < 8; ++i) {
      const float place = largest > 0 ? std::clamp(x[i] / scale, -127.0F, 127.0F) : 0.0F;
      block[4 + i] = std::byte(std::uint8_t(encoding::round_away(place)));
    }
  }
};

}  // namespace moe::inline MOE_TARGET

namespace {

using namespace moe;
using test::Bytes8, test::error_of;

template <class W = float>
GatedFfnBank<W> random_bank(Index num_experts, Index d, Index ff, unsigned seed) {
  WeightStack<W> gate(num_experts, ff, d), up(num_experts, ff, d), down(num_experts, d, ff);
  for (Index e = 0; e < num_experts; ++e) {
    gate.owned(e) = random_weight<float>(ff, d, seed + unsigned(3 * e)).template cast<W>();
    up.owned(e) = random_weight<float>(ff, d, seed + unsigned(3 * e) + 1).template cast<W>();
    down.owned(e) = random_weight<float>(d, ff, seed + unsigned(3 * e) + 2).template cast<W>();
  }
  return {std::move(gate), std::move(up), std::move(down)};
}

auto random_layer(Index num_experts, Index d, Index ff, unsigned seed) {
  return MoeLayer(LinearTopK<float>(random_weight<float>(num_experts, d, seed + 1000), {.top_k = 2}),
                  random_bank(num_experts, d, ff, seed));
}

TEST(Quantize, ErrorsAreOfEachExpertsMatrices) {
  auto bank = random_bank(3, 16, 24, 1);
  bank[1].w_up.setZero();
  const auto coded = quantize<Bytes8>(bank);
  const auto errors = measure_weight_errors(bank, coded);
  ASSERT_EQ(errors.size(), 3u);
  for (std::size_t e = 0; e < 3; ++e) {
    const Weight<float> was = bank.w_gate()[Index(e)], is = dequantized<float>(coded.w_gate())[Index(e)];
    EXPECT_NEAR(errors[e].gate, double((is - was).norm() / was.norm()), 1e-6);
    EXPECT_GT(errors[e].down, 0);
    EXPECT_LT(errors[e].down, 0.5 / 127 * std::sqrt(8.0));  // half a step of a number that may be an eighth of the norm
  }
  EXPECT_EQ(errors[1].up, 0);
  EXPECT_NE(to_text(errors).find("expert 1: weights are off by"), std::string::npos);
}

TEST(Quantize, ALayersAnswerIsOffByAsMuchAsItsWeights) {
  const auto layer = random_layer(4, 16, 24, 2);
  const auto coded = quantize<Bytes8>(layer);
  const Matrix<float> x = random_tokens<float>(16, 33, 3);
  const auto change = measure_change(layer, coded, x);
  EXPECT_GT(change.relative, 0);
  EXPECT_LT(change.relative, 0.02);
}

TEST(Quantize, BitsDependOnNoThreads) {
  const auto bank = random_bank<bfloat16>(2, 40, 24, 4);
  const auto one = quantize<Bytes8>(bank), four = quantize<Bytes8>(bank, {}, OpenMp{4});
  for (Index e = 0; e < 2; ++e) {
    for (const auto& [a, b] : {std::pair(&one.w_up(), &four.w_up()), std::pair(&one.w_down(), &four.w_down())}) {
      const QuantizedMatrix &x = (*a)[e], &y = (*b)[e];
      EXPECT_EQ(std::memcmp(x.codes.data, y.codes.data, std::size_t(x.rows() * x.codes.row_bytes)), 0);
    }
  }
}

TEST(Quantize, BanksOfSixteenBitsAreQuantisedAsTheirNumbersAreAsFloat) {
  const auto bank = random_bank<bfloat16>(1, 16, 8, 5);
  GatedFfnBank<float> same(WeightStack<float>(1, 8, 16), WeightStack<float>(1, 8, 16), WeightStack<float>(1, 16, 8));
  same[0].w_gate = bank.w_gate()[0].cast<float>();
  same[0].w_up = bank.w_up()[0].cast<float>();
  same[0].w_down = bank.w_down()[0].cast<float>();
  EXPECT_EQ(dequantized<float>(quantize<Bytes8>(bank).w_up())[0], dequantized<float>(quantize<Bytes8>(same).w_up())[0]);
}

TEST(Quantize, ImportanceIsTheSumOfSquaresOfWhatAnExpertRead) {
  const auto layer = random_layer(3, 8, 16, 6);
  std::vector<ExpertImportance> seen;
  Workspace<float> ws;
  std::vector<std::vector<double>> input(3, std::vector<double>(8)), hidden(3, std::vector<double>(16));
  for (const unsigned seed : {7U, 8U}) {
    const Matrix<float> x = random_tokens<float>(8, 19, seed);
    record_importance(layer, x, seen);
    layer.forward(x, ws);
    for (std::size_t r = 0; r < ws.routing.token.size(); ++r) {
      const Index e = ws.routing.expert[r];
      const Eigen::VectorXf token = x.col(ws.routing.token[r]);
      const Eigen::VectorXf gate = layer.experts().w_gate()[e] * token, up = layer.experts().w_up()[e] * token;
      for (Index i = 0; i < 8; ++i) input[std::size_t(e)][std::size_t(i)] += double(token(i)) * double(token(i));
      for (Index i = 0; i < 16; ++i) {
        const double h = double(gate(i)) / (1 + std::exp(-double(gate(i)))) * double(up(i));
        hidden[std::size_t(e)][std::size_t(i)] += h * h;
      }
    }
  }
  Index tokens = 0;
  for (std::size_t e = 0; e < 3; ++e) {
    tokens += seen[e].tokens;
    for (std::size_t i = 0; i < 8; ++i) EXPECT_NEAR(seen[e].input[i], input[e][i], 1e-5 * (1 + input[e][i]));
    for (std::size_t i = 0; i < 16; ++i) EXPECT_NEAR(seen[e].hidden[i], hidden[e][i], 1e-5 * (1 + hidden[e][i]));
  }
  EXPECT_EQ(tokens, 2 * 2 * 19);
}

TEST(Quantize, ImportanceReachesTheColumnsThatItIsOf) {
  auto bank = random_bank(1, 8, 8, 9);
  bank[0].w_up(0, 3) = 100;  // all others of that block are coarse beside it, unless it counts nothing
  ExpertImportance importance{std::vector<float>(8, 1), std::vector<float>(8, 1)};
  importance.input[3] = 0;
  const auto plain = dequantized<float>(quantize<Bytes8>(bank).w_up()),
             told = dequantized<float>(quantize<Bytes8>(bank, {.importance = {importance}}).w_up());
  EXPECT_GT(std::fabs(plain[0](0, 0) - bank.w_up()[0](0, 0)), 10 * std::fabs(told[0](0, 0) - bank.w_up()[0](0, 0)));
}

TEST(Quantize, ChoicesChangeWithWhatTheRouterReads) {
  const auto layer = random_layer(6, 8, 8, 10);
  const Matrix<float> x = random_tokens<float>(8, 50, 11);
  Matrix<float> other = x;
  other.col(7) = -x.col(7);
  const auto same = measure_choices(layer.router(), x, x), one = measure_choices(layer.router(), x, other);
  EXPECT_EQ(same.changed_tokens, 0);
  EXPECT_EQ(same.routes, 100);
  EXPECT_EQ(one.changed_tokens, 1);
  EXPECT_GE(one.changed_routes, 1);
  EXPECT_LE(one.changed_routes, 2);
}

TEST(Quantize, RefusesWhatDoesNotFit) {
  EXPECT_EQ(error_of<std::invalid_argument>([] { quantize<Bytes8>(random_bank(2, 12, 8, 12)); }),
            "quantize: w_gate of expert 0: the length of a row is 12, expected a multiple of 8, the block of Bytes8");
  EXPECT_EQ(error_of<std::invalid_argument>([] { quantize<Bytes8>(random_bank(2, 8, 12, 12)); }),
            "quantize: w_down of expert 0: the length of a row is 12, expected a multiple of 8, the block of Bytes8");
  EXPECT_EQ(error_of<std::invalid_argument>([] {
              auto bank = random_bank(2, 8, 8, 13);
              bank[1].w_up(2, 5) = std::numeric_limits<float>::quiet_NaN();
              quantize<Bytes8>(bank);
            }),
            "quantize: w_up of expert 1: the number at (2, 5) is nan, expected a finite one");
  EXPECT_EQ(error_of<std::invalid_argument>(
                [] { quantize<Bytes8>(random_bank(2, 8, 8, 14), {.importance = std::vector<ExpertImportance>(3)}); }),
            "quantize: importance.size() is 3, expected 2");
  EXPECT_EQ(error_of<std::invalid_argument>([] {
              const ExpertImportance bad{std::vector<float>(8, -1), std::vector<float>(8)};
              quantize<Bytes8>(random_bank(1, 8, 8, 14), {.importance = {bad}});
            }),
            "quantize: w_gate of expert 0: importance[0] is -1.000000, expected a finite number that is not negative");
}

}  // namespace
