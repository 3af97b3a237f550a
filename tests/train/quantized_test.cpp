// Gradients through coded weights, and of adapters beside them.
#include "allocations.hpp"

#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "compare.hpp"
#include "errors.hpp"
#include "laws/gradient_laws.hpp"
#include "moe/moe.hpp"
#include "moe/train.hpp"
#include "pools.hpp"
#include "quantized_blocks.hpp"
#include "random.hpp"
#include "train/lora_factories.hpp"

namespace moe {
namespace {

using laws::gradients_of;
using test::coded_bank;
using test::error_of;
using test::is_close;
using test::mixed_ranks;
using test::random_matrix;
using test::router_of;
using test::same_bits;
using test::with_random_adapters;

/// Gradients of x and of each parameter, of one layer on many threads and of another one on a single thread.
template <class Coded, class Decoded>
void expect_the_same_gradients(const Coded& coded, const Decoded& decoded, Index num_tokens) {
  const auto x = random_matrix<Matrix<float>>(coded.d_model(), num_tokens, 1);
  const auto c = random_matrix<Matrix<float>>(coded.d_model(), num_tokens, 2);
  auto expected = gradients_of(decoded, x, c);
  const auto slopes = parameters(expected.of_parameters);
  for (const Index threads : {1, 2, 3}) {
    auto got = gradients_of(coded, x, c, test::OwnThreads{threads});
    EXPECT_TRUE(same_bits(got.of_x, expected.of_x)) << coded.d_model() << " wide, " << num_tokens << " tokens";
    const auto its = parameters(got.of_parameters);
    ASSERT_EQ(its.size(), slopes.size());
    for (std::size_t p = 0; p < its.size(); ++p) {
      EXPECT_TRUE(same_bits(its[p].matrix(), slopes[p].matrix())) << its[p].name << ", " << num_tokens << " tokens";
    }
  }
}

template <class Act>
void expect_the_same_gradients_of_adapters(Index d_model, Index d_ff, Index num_tokens) {
  const auto bank = coded_bank<Act>(4, d_model, d_ff, 1, true);
  for (const WeightOn weight_on : {WeightOn::output, WeightOn::input}) {
    const auto router = router_of<float>(4, d_model, 2, weight_on);
    const LoraBankOptions options{.expert_ranks = mixed_ranks, .dropout = 0.25};
    const MoeLayer coded(with_lora(router, {.rank = 2}), with_random_adapters(with_lora(bank, options), 3));
    const MoeLayer decoded(with_lora(router, {.rank = 2}),
                           with_random_adapters(with_lora(dequantized<float>(bank), options), 3));
    const auto x = random_matrix<Matrix<float>>(d_model, num_tokens, 4);
    EXPECT_TRUE(same_bits(coded.forward(x), decoded.forward(x)));
    expect_the_same_gradients(coded, decoded, num_tokens);
    expect_the_same_gradients(MoeLayer(router, Frozen(bank)), MoeLayer(router, Frozen(dequantized<float>(bank))),
                              num_tokens);
  }
}

TEST(QuantizedGradients, AreThoseBesideTheDecodedWeightsToTheBit) {
  for (const Index num_tokens : {0, 1, 12, 40}) {
    for (const Index d_model : {1, 3, 7, 16, 17, 33}) {
      expect_the_same_gradients_of_adapters<SwiGlu>(d_model, 2 * d_model - 1, num_tokens);
    }
    expect_the_same_gradients_of_adapters<SwiGlu>(48, 32, num_tokens);
    expect_the_same_gradients_of_adapters<ReluSquared>(16, 48, num_tokens);
  }
  expect_the_same_gradients_of_adapters<SwiGlu>(16, 2208, 3);
}

TEST(QuantizedGradients, PassProjectionsToo) {
  const auto narrow = coded_bank<SwiGlu>(4, 8, 32, 1, false);
  const Projection<Quantized> in(test::random_stack(1, 8, 48, 2, 1)), out(test::random_stack(1, 48, 8, 3, 2));
  const auto router = router_of<float>(4, 48, 4);
  const auto latent = [&](const auto& as) {
    return MoeLayer(router, LatentExperts(with_random_adapters(with_lora(as(in), {.rank = 3}), 5),
                                          with_random_adapters(with_lora(as(narrow), {.rank = 2}), 6),
                                          with_random_adapters(with_lora(as(out), {.rank = 1}), 7)));
  };
  for (const Index num_tokens : {0, 1, 12, 40}) {
    expect_the_same_gradients(latent([](const auto& part) { return part; }),
                              latent([](const auto& part) { return dequantized<float>(part); }), num_tokens);
  }
}

/// Pieces of rows that begin and end in the middle of blocks, in more rows and columns than are packed at once.
TEST(QuantizedGradients, AddProductsOfAnyColumns) {
  test::Random random(1);
  std::vector<std::shared_ptr<std::vector<std::byte>>> memory;
  for (const NumberFormat* format : {&test::triplets, &block_format<test::Halves16>}) {
    const auto coded = test::random_codes(*format, 300, 2208, random, memory);
    const auto decoded = dequantized(coded);
    const auto d = random_matrix<Matrix<float>>(300, 5, 2);
    for (const auto& [first, last] : {std::pair<Index, Index>{0, 2208}, {37, 2208}, {5, 2200}, {8, 9}, {7, 7}}) {
      Matrix<float> sums = Matrix<float>::Constant(last - first, 5, 0.5F), expected = sums;
      Scratch scratch;
      float* const room = kernels::make_product_room<float>(scratch);
      kernels::add_transposed<Quantized, float>(kernels::columns_of_weight(coded, first, last), d, sums, room);
      kernels::add_transposed<float, float>(kernels::columns_of_weight(map_of(decoded), first, last), d, expected,
                                            room);
      EXPECT_TRUE(same_bits(sums, expected)) << format->name << ": " << first << ", " << last;
    }
  }
}

TEST(QuantizedLora, LearnsByItsAdaptersAlone) {
  const auto router = router_of<float>(3, 16, 1);
  TrainableLayer<float> layer(MoeLayer(router, with_lora(coded_bank<SwiGlu>(3, 16, 32, 2, false), {.rank = 2})));
  EXPECT_EQ(layer.parameters().size(), 1U + 3 * 3 * 2);
  ASSERT_EQ(layer.frozen_parameters().size(), 9U);
  for (const auto& parameter : layer.frozen_parameters()) EXPECT_NE(parameter.coded, nullptr) << parameter.name;
  EXPECT_EQ(layer.frozen_parameters()[0].name, "experts.0.gate_proj.weight");
  EXPECT_EQ(training_report(layer).substr(training_report(layer).find("19 of")),
            "19 of 28 parameters learn, 912 of 5520 numbers\n");

  const auto x = random_matrix<Matrix<float>>(16, 64, 3);
  Matrix<float> y(16, 64), d_x(16, 64);
  AdamW<float> adam(layer.parameters(), {.learning_rate = 1e-2, .weight_decay = 0});
  float first = 0;
  for (int step = 0; step < 60; ++step) {  // learns y = −x
    layer.forward(x, y);
    if (step == 0) first = (y + x).squaredNorm();
    set_to_zero(layer.gradients());
    layer.backward(x, (y + x) / 64, d_x);
    adam.step(layer.gradients());
  }
  layer.forward(x, y);
  EXPECT_LT((y + x).squaredNorm(), first / 2);
}

TEST(QuantizedLora, BecomesOfTheTypeThatIsAskedFor) {
  const auto bank =
      with_random_adapters(with_lora(coded_bank<SwiGlu>(4, 16, 32, 1, true), {.expert_ranks = mixed_ranks}), 2);
  const auto floats = merged_as<float>(bank);
  auto expected = dequantized<float>(bank.base());
  merge(bank.adapters(), expected);
  const auto bfloats = merged_as<bfloat16>(bank);
  const auto check = [](const auto& of_floats, const auto& of_bfloats, const auto& sums) {
    for (Index e = 0; e < 4; ++e) {
      EXPECT_TRUE(same_bits(of_floats[e], sums[e])) << e;
      EXPECT_TRUE(same_bits(of_bfloats[e].template cast<float>().eval(),
                            sums[e].template cast<bfloat16>().template cast<float>().eval()))
          << e;
    }
  };
  check(floats.w_gate(), bfloats.w_gate(), expected.w_gate());
  check(floats.w_up(), bfloats.w_up(), expected.w_up());
  check(floats.w_down(), bfloats.w_down(), expected.w_down());
  EXPECT_TRUE(same_bits(floats.biases().down, bank.base().biases().down));

  const auto projection =
      with_random_adapters(with_lora(Projection<Quantized>(test::random_stack(1, 16, 8, 3, 1)), {.rank = 2}), 4);
  const Weight<float> sum = dequantized(projection.base().weight()) +
                            projection.adapter().scale() * (projection.adapter().b * projection.adapter().a);
  EXPECT_TRUE(is_close(merged_as<float>(projection).weight(), sum));
}

TEST(QuantizedLora, IsNotMergedIntoCodes) {
  const auto router = router_of<float>(4, 16, 1);
  const auto bank = coded_bank<SwiGlu>(4, 16, 32, 1, true);
  const MoeLayer layer(router, with_lora(bank, {.expert_ranks = {0, 0, 3, 1}}));
  const std::string why =
      " beside quantised weights, to which nothing can be added: serve the adapter beside them, as it is, or ask for a "
      "type that they become: merged_as<bfloat16>(bank)";
  EXPECT_EQ(error_of([&] { merged(layer); }), "merged: expert 2 has an adapter of rank 3" + why);
  EXPECT_EQ(error_of([&] { TrainableLayer<float>(layer).merged(); }),
            "merged: expert 2 has an adapter of rank 3" + why);
  const Projection<Quantized> projection(test::random_stack(1, 16, 8, 3, 1));
  EXPECT_EQ(error_of([&] { merged(with_lora(projection, {.rank = 2})); }),
            "merged: a projection has an adapter of rank 2" + why);

  const auto x = random_matrix<Matrix<float>>(16, 9, 2);
  const MoeLayer none(router, with_lora(bank, {.rank = 0}));
  EXPECT_TRUE(same_bits(merged(none).forward(x), MoeLayer(router, bank).forward(x)));
  EXPECT_EQ(merged(with_lora(projection, {.rank = 0})).weight().codes.data, projection.weight().codes.data);
}

}  // namespace
}  // namespace moe
