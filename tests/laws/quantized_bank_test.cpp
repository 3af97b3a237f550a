#include "laws/experts_laws.hpp"

#include "errors.hpp"
#include "moe/core/parameters.hpp"
#include "moe/experts/any_experts.hpp"
#include "moe/experts/expert_subset.hpp"
#include "moe/experts/ffn_bank.hpp"
#include "moe/experts/joined_experts.hpp"
#include "moe/experts/latent_experts.hpp"
#include "moe/experts/normed_experts.hpp"
#include "moe/surgery/prune.hpp"
#include "quantized_blocks.hpp"

namespace moe::laws {

INSTANTIATE_TYPED_TEST_SUITE_P(Quantized, ExpertsLaws, test::QuantizedBanks);

/// y of a bank by itself.
template <class Bank>
Matrix<float> answers(const Bank& bank, const Matrix<float>& x, const Routing<float>& routing, const Numerics& numerics,
                      ExecutorRef executor) {
  PlanMemory<float> memory;
  const auto plan = plan_dispatch(routing, x.cols(), bank.num_experts(), memory);
  std::vector<Scratch> scratch;
  Workers workers(executor, scratch, numerics);
  Matrix<float> y = Matrix<float>::Constant(x.rows(), x.cols(), 0.25F);
  bank.apply(x, plan, y, workers);
  return y;
}

template <class Act>
void expect_the_bits_of_the_decoded_bank(Index d_model, Index d_ff, Index num_tokens, bool biased) {
  const Index num_experts = 3;
  const auto coded = test::coded_bank<Act>(num_experts, d_model, d_ff, 1, biased);
  const auto decoded = dequantized<float>(coded);
  const auto x = random_matrix<Matrix<float>>(d_model, num_tokens, 2);
  for (const WeightOn weight_on : {WeightOn::output, WeightOn::input}) {
    auto routing =
        num_tokens > 0 ? random_routing<float>(num_tokens, num_experts, num_tokens * 2, 3) : Routing<float>();
    routing.weight_on = weight_on;
    for (const bool batch_invariant : {false, true}) {
      const auto expected = answers(decoded, x, routing, {.batch_invariant = batch_invariant}, Serial{});
      for (const Products products : {Products::exact, Products::fast}) {
        for (const Index threads : {1, 2, 3}) {
          const Numerics numerics{products, batch_invariant};
          EXPECT_TRUE(same_bits(answers(coded, x, routing, numerics, test::OwnThreads{threads}), expected))
              << d_model << " wide, " << d_ff << " hidden, " << num_tokens << " tokens, " << threads << " threads";
        }
      }
    }
  }
}

TEST(QuantizedBank, HasTheBitsOfTheFloatBankOfItsNumbers) {
  for (const Index d_model : sizes) {
    for (const Index num_tokens : {0, 1, 2, 5, 17, 40}) {
      expect_the_bits_of_the_decoded_bank<SwiGlu>(d_model, 2 * d_model - 1, num_tokens, false);
      expect_the_bits_of_the_decoded_bank<Relu>(d_model, d_model + 1, num_tokens, true);
    }
  }
}

/// Rows that are decoded in several goes, depths around those that kernels treat apart, and columns in several groups.
TEST(QuantizedBank, HasTheBitsOfTheFloatBankOfItsNumbersWhereRowsAreMany) {
  for (const auto& [d_model, d_ff] : {std::pair<Index, Index>{48, 1040}, {513, 192}, {2064, 130}, {7, 3001}}) {
    for (const Index num_tokens : {1, 2, 9, 70}) {
      expect_the_bits_of_the_decoded_bank<SwiGlu>(d_model, d_ff, num_tokens, true);
    }
  }
  expect_the_bits_of_the_decoded_bank<SwiGlu>(1040, 48, 300, true);
}

/// Experts whose matrices are of one type of GGUF after the other, all of which are multiplied as integers.
template <class Act>
FfnBank<Quantized, Act> bank_of_integers(Index num_experts, Index d_model, Index d_ff, unsigned seed) {
  auto memory = std::make_shared<std::vector<std::shared_ptr<std::vector<std::byte>>>>();
  std::size_t next = seed;
  const auto stack = [&](Index rows, Index cols) {
    std::vector<QuantizedMatrix> matrices;
    while (Index(matrices.size()) < num_experts) {
      const GgmlType& type = ggml_types[next++ % std::size(ggml_types)];
      if (type.format == nullptr || type.format->integers == nullptr || cols % type.numbers != 0) continue;
      const test::RandomBlocks blocks(type, rows, cols, unsigned(next), 1e-4F);
      matrices.push_back(blocks.matrix);
      memory->push_back(blocks.bytes);
    }
    return WeightStack<Quantized>(std::move(matrices), memory);
  };
  const bool is_gated = FfnBank<Quantized, Act>::is_gated;
  auto gate = is_gated ? stack(d_ff, d_model) : WeightStack<Quantized>(0, 0, 0);
  auto up = stack(d_ff, d_model), down = stack(d_model, d_ff);
  return FfnBank<Quantized, Act>::of(std::move(gate), std::move(up), std::move(down), {}, {});
}

template <class Act>
void expect_fast_integers(Index d_model, Index d_ff, unsigned seed) {
  const Index num_experts = 5;
  const auto coded = bank_of_integers<Act>(num_experts, d_model, d_ff, seed);
  ASSERT_TRUE(coded.w_up().are_integers() && coded.w_down().are_integers());
  for (const Index num_tokens : {0, 1, 3, 30, 130}) {
    const auto x = random_matrix<Matrix<float>>(d_model, num_tokens, 2);
    const auto routing =
        num_tokens > 0 ? random_routing<float>(num_tokens, num_experts, 2 * num_tokens, 3) : Routing<float>();
    const auto exact = answers(coded, x, routing, {}, Serial{});
    for (const bool batch_invariant : {false, true}) {
      const Numerics numerics{Products::fast, batch_invariant};
      const auto fast = answers(coded, x, routing, numerics, Serial{});
      if (num_tokens > 0) {
        const float difference = (fast - exact).norm(), size = (exact.array() - 0.25F).matrix().norm();
        EXPECT_GT(difference, 0) << "as if exact";
        const float of_sums = 0.25F * 0x1p-23F * std::sqrt(float(exact.size()));  // answers are added to 0.25
        EXPECT_LT(difference, 2e-2F * size + of_sums) << num_tokens << " tokens";
      }
      for (const Index threads : {2, 3}) {
        EXPECT_TRUE(same_bits(answers(coded, x, routing, numerics, test::OwnThreads{threads}), fast))
            << num_tokens << " tokens, " << threads << " threads";
      }
      if (!batch_invariant || num_tokens == 0) continue;
      const Index last = num_tokens - 1;
      Routing<float> alone;
      for (std::size_t r = 0; r < routing.token.size(); ++r) {
        if (routing.token[r] != last) continue;
        alone.token.push_back(0);
        alone.expert.push_back(routing.expert[r]);
        alone.weight.push_back(routing.weight[r]);
      }
      const Matrix<float> y = answers(coded, x.col(last), alone, numerics, Serial{});
      EXPECT_TRUE(same_bits(y, Matrix<float>(fast.col(last)))) << num_tokens << " tokens";
      Matrix<float> other = x;
      if (num_tokens == 1) continue;
      other(7, 0) = NAN;
      const auto with_nan = answers(coded, other, routing, numerics, Serial{});
      EXPECT_TRUE(same_bits(Matrix<float>(with_nan.rightCols(last)), Matrix<float>(fast.rightCols(last))));
      const bool has_route = std::count(routing.token.begin(), routing.token.end(), 0) > 0;
      EXPECT_EQ(with_nan.col(0).array().isNaN().all(), has_route);
    }
  }
}

TEST(QuantizedBank, MultipliesIntegersWhereThatIsPermitted) {
  expect_fast_integers<SwiGlu>(256, 512, 0);
  expect_fast_integers<Relu>(512, 288, 10);
  expect_fast_integers<SwiGlu>(96, 32, 20);
}

/// An expert whose codes are none leaves all to be decoded.
TEST(QuantizedBank, MultipliesNoIntegersWhereOneHasNone) {
  const auto integers = bank_of_integers<Relu>(1, 64, 32, 1);
  const auto none = test::random_stack(1, 32, 64, 1, 1);
  const WeightStack<Quantized> up({integers.w_up()[0], none[0]});
  const WeightStack<Quantized> down({integers.w_down()[0], integers.w_down()[0]});
  const FfnBank<Quantized, Relu> bank(up, down);
  EXPECT_FALSE(up.are_integers());
  const auto x = random_matrix<Matrix<float>>(64, 9, 2);
  const auto routing = random_routing<float>(9, 2, 18, 3);
  EXPECT_TRUE(same_bits(answers(bank, x, routing, {.products = Products::fast}, Serial{}),
                        answers(bank, x, routing, {}, Serial{})));
}

TEST(QuantizedBank, IsDequantizedToTheTypeThatIsAskedFor) {
  const auto coded = test::coded_bank<Relu>(3, 16, 32, 1, true);
  const auto as_floats = dequantized<float>(coded);
  const auto as_bfloats = dequantized<bfloat16>(coded);
  EXPECT_TRUE(same_bits(as_floats.biases().up, coded.biases().up));
  for (Index e = 0; e < 3; ++e) {
    std::vector<float> row(32);
    for (Index r = 0; r < 16; ++r) {
      coded.w_down()[e].decode(r, 0, 32, row.data());
      for (Index c = 0; c < 32; ++c) {
        EXPECT_EQ(as_floats.w_down()[e](r, c), row[std::size_t(c)]);
        EXPECT_EQ(as_bfloats.w_down()[e](r, c), bfloat16(row[std::size_t(c)]));
      }
    }
  }
}

/// The same group twice: of coded weights, and of their numbers.
template <class Make>
void expect_the_same_answers(const char* which, Index num_experts, const Make& make) {
  for (const Index num_tokens : {0, 1, 20}) {
    const auto x = random_matrix<Matrix<float>>(16, num_tokens, 2);
    const auto routing = num_tokens > 0 ? random_routing<float>(num_tokens, num_experts, 40, 3) : Routing<float>();
    const auto coded = make([](auto part) { return part; });
    const auto decoded = make([](const auto& part) { return dequantized<float>(part); });
    EXPECT_TRUE(
        same_bits(answers(coded, x, routing, {}, test::OwnThreads{2}), answers(decoded, x, routing, {}, Serial{})))
        << which << ", " << num_tokens << " tokens";
  }
}

TEST(QuantizedBank, IsAGroupLikeAnyOther) {
  const auto wide = test::coded_bank<SwiGlu>(4, 16, 48, 1, true),
             wider = test::coded_bank<SwiGlu>(2, 16, 64, 20, false);
  const auto plain = test::coded_bank<Relu>(3, 16, 32, 40, true);
  const auto narrow = test::coded_bank<SwiGlu>(4, 8, 32, 60, false);
  expect_the_same_answers("joined, beside a bank of another type", 9,
                          [&](const auto& as) { return JoinedExperts(as(wide), as(wider), as(plain)); });
  expect_the_same_answers("some of them", 2, [&](const auto& as) { return ExpertSubset(as(wide), {1, 3}); });
  expect_the_same_answers("normed", 4, [&](const auto& as) {
    return NormedExperts(as(wide), RmsNorm<float>(random_matrix<Vector<float>>(16, 1, 4), {}));
  });
  expect_the_same_answers("behind any type", 4, [&](const auto& as) { return AnyExperts<float>(as(wide)); });
  expect_the_same_answers("pruned", 2, [&](const auto& as) { return keep_experts(as(wide), {0, 2}); });
  expect_the_same_answers("pruned, without a gate", 1, [&](const auto& as) { return keep_experts(as(plain), {2}); });
  const Projection<Quantized> in(test::random_stack(1, 8, 16, 80, 1), random_matrix<Vector<float>>(8, 1, 5)),
      out(test::random_stack(1, 16, 8, 81, 2));
  expect_the_same_answers("between projections", 4,
                          [&](const auto& as) { return LatentExperts(as(in), as(narrow), as(out)); });
}

/// Pruning copies no weight, and keeps the memory of those that are left.
TEST(QuantizedBank, IsPrunedWhereItLies) {
  auto bank = std::make_optional(test::coded_bank<SwiGlu>(4, 16, 48, 1, true));
  const auto data = bank->w_up()[2].codes.data;
  const auto kept = keep_experts(*bank, {2});
  const auto expected = dequantized(bank->w_up()[2]);
  bank.reset();
  EXPECT_EQ(kept.w_up()[0].codes.data, data);
  EXPECT_TRUE(same_bits(dequantized(kept.w_up()[0]), expected));
}

/// However a piece of a row begins and ends, within blocks or not, of columns in the middle as well.
TEST(QuantizedMatrix, DecodesAnyPieceOfARow) {
  Random random(1);
  std::vector<std::shared_ptr<std::vector<std::byte>>> memory;
  for (const NumberFormat* format : {&test::triplets, &block_format<test::Bytes8>, &block_format<test::Halves16>}) {
    for (const Index cols : {16, 48, 50}) {
      if (cols % format->block != 0 && format != &test::triplets) continue;
      const auto matrix = test::random_codes(*format, 3, cols, random, memory);
      std::vector<float> all(static_cast<std::size_t>(cols));
      matrix.decode(2, 0, cols, all.data());
      for (Index left = 0; left <= cols; ++left) {
        for (Index right = left; right <= cols; ++right) {
          const auto columns = matrix.middle_cols(left, right - left);
          for (Index first = 0; first <= right - left; first += 5) {
            const Index count = right - left - first;
            std::vector<float> some(static_cast<std::size_t>(count + 1), 77.F);
            columns.decode(2, first, count, some.data());
            EXPECT_TRUE(std::equal(some.begin(), some.end() - 1, all.begin() + left + first))
                << format->name << ": " << count << " of " << cols << " from " << left + first << " on";
            EXPECT_EQ(some.back(), 77.F);
          }
        }
      }
    }
  }
}

TEST(QuantizedMatrix, RefusesRowsThatAreNoWholeBlocks) {
  const std::byte codes[36] = {};
  EXPECT_EQ(test::error_of([&] { QuantizedMatrix(block_format<test::Bytes8>, 1, 20, {codes, 36}); }),
            "QuantizedMatrix: cols is 20, expected a multiple of 8, the block of Bytes8");
  EXPECT_EQ(QuantizedMatrix(block_format<test::Bytes8>, 1, 0, {codes, 0}).cols(), 0);
  EXPECT_EQ(QuantizedMatrix(test::triplets, 1, 20, {codes, 20}, {codes, 7}).cols(), 20);
}

TEST(QuantizedBank, SaysThatItsWeightsCannotLearn) {
  auto bank = test::coded_bank<Relu>(2, 16, 8, 1, false);
  EXPECT_EQ(test::error_of([&] { parameters(bank); }),
            "parameters: 0.up_proj.weight cannot learn: it is quantised (Bytes8), expected it frozen, and adapters "
            "beside it (LoraBank), or dequantized<float>()");
  const auto all = all_parameters(bank);
  ASSERT_EQ(all.size(), 4U);
  EXPECT_EQ(all[0].name, "0.up_proj.weight");
  EXPECT_EQ(all[0].coded, &bank.w_up()[0]);
  EXPECT_EQ(all[0].data, nullptr);
  EXPECT_EQ(all[0].bytes(), 8 * 2 * 12);
}

}  // namespace moe::laws
