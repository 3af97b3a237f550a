// Adapters beside frozen weights: what they add, what they learn, and what they leave alone.
#include "allocations.hpp"

#include "moe/lora/bank.hpp"

#include <array>
#include <cmath>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "compare.hpp"
#include "errors.hpp"
#include "laws/gradient_laws.hpp"
#include "moe/moe.hpp"
#include "moe/train.hpp"
#include "pools.hpp"
#include "random.hpp"
#include "train/lora_factories.hpp"

namespace moe {
namespace {

using laws::expect_true_gradients;
using laws::gradients_of;
using test::bank_with_lora;
using test::error_of;
using test::mixed_ranks;
using test::random_matrix;
using test::router_of;
using test::same_bits;
using test::with_random_adapters;

TEST(LoraGradients, OfEveryMatrixAndRank) {
  for (const auto& [gate, up, down] : {std::array{true, false, false}, std::array{false, true, false},
                                       std::array{false, false, true}, std::array{true, true, true}}) {
    const LoraBankOptions options{.expert_ranks = mixed_ranks, .gate = gate, .up = up, .down = down};
    for (const WeightOn weight_on : {WeightOn::output, WeightOn::input}) {
      for (const Index tokens : {0, 1, 9, 40}) {
        const auto router = router_of<double>(4, 9, 1, weight_on);
        const auto bank = bank_with_lora<double>(4, 9, 17, options, 2);
        expect_true_gradients(MoeLayer(router, bank), tokens, 3);
        expect_true_gradients(MoeLayer(Frozen(router), bank), tokens, 3);
      }
    }
  }
}

TEST(LoraGradients, OfExpertsThatAreNotGated) {
  for (const auto& [up, down] : {std::pair{true, false}, std::pair{false, true}, std::pair{true, true}}) {
    const LoraBankOptions options{.expert_ranks = mixed_ranks, .up = up, .down = down};
    for (const Index tokens : {0, 1, 9, 40}) {
      const auto bank = bank_with_lora<double, ReluSquared>(4, 9, 17, options, 62);
      expect_true_gradients(MoeLayer(router_of<double>(4, 9, 61), bank), tokens, 63);
      const auto shared = bank_with_lora<double, Gelu>(1, 9, 5, {.rank = 3, .dropout = 0.2}, 64);
      expect_true_gradients(DenseLayer(shared), tokens, 65, 40, {.seed = 1});
    }
  }
}

TEST(Lora, ExpertsThatAreNotGatedHaveNoAdapterOfAGate) {
  const auto bank = random_bank<float, ReluSquared>(2, 6, 5, 66);
  auto adapted = with_random_adapters(with_lora(bank, {.rank = 2}), 67);
  std::vector<std::string> names;
  for (const auto& [name, adapter, layer] : named_adapters("experts", adapted)) names.push_back(name);
  EXPECT_EQ(names, (std::vector<std::string>{"experts.0.up_proj", "experts.0.down_proj", "experts.1.up_proj",
                                             "experts.1.down_proj"}));
  const auto x = random_matrix<Matrix<float>>(6, 40, 68);
  const auto router = router_of<float>(2, 6, 69);
  const auto sum = merged(adapted);
  EXPECT_TRUE(test::is_close(MoeLayer(router, sum).forward(x), MoeLayer(router, adapted).forward(x)));
  EXPECT_FALSE(test::is_close(MoeLayer(router, bank).forward(x), MoeLayer(router, adapted).forward(x)));
  auto apart = sum;
  unmerge(adapted.adapters(), apart);
  for (Index e = 0; e < 2; ++e)
    EXPECT_TRUE(test::is_close(Weight<float>(apart.w_up()[e]), Weight<float>(bank.w_up()[e])));
  auto adapters = adapted.adapters();
  adapters[1].gate = make_adapter<float>(5, 6, 2, 1, 1);
  EXPECT_EQ(error_of([&] { LoraBank(bank, adapters); }),
            "LoraBank: 1.gate_proj: rank(), as experts are not gated, is 2, expected 0");
}

TEST(LoraGradients, OfEveryWidth) {
  for (const Index d_model : laws::gradient_sizes) {
    for (const Index d_ff : {Index(1), 2 * d_model + 1}) {
      const auto bank = bank_with_lora<double>(3, d_model, d_ff, {.expert_ranks = {2, 0, 5}}, 4);
      expect_true_gradients(MoeLayer(router_of<double>(3, d_model, 5), bank), 7, 6, 10);
    }
  }
}

TEST(LoraGradients, OfTheRouter) {
  for (const Index rank : {0, 1, 3, 8}) {
    const auto router = with_random_adapters(with_lora(router_of<double>(4, 9, 7), {.rank = rank}), 8);
    for (const Index tokens : {0, 1, 9, 40}) {
      expect_true_gradients(MoeLayer(router, Frozen(random_bank<double>(4, 9, 5, 9))), tokens, 10);
    }
    expect_true_gradients(MoeLayer(WithCapacity(router, {.capacity = fixed_capacity(3)}),
                                   bank_with_lora<double>(4, 9, 5, {.rank = 2}, 9)),
                          9, 10);
  }
}

TEST(LoraGradients, OfASharedExpertAndOfADenseLayer) {
  const MoeLayer sparse(router_of<double>(4, 9, 11), bank_with_lora<double>(4, 9, 5, {.rank = 2}, 12));
  const auto shared = bank_with_lora<double>(1, 9, 17, {.rank = 3}, 13);
  expect_true_gradients(WithSharedExpert(sparse, shared, random_matrix<Eigen::RowVectorXd>(1, 9, 14)), 9, 15);
  expect_true_gradients(DenseLayer(shared), 9, 15);
}

TEST(LoraGradients, WithDropout) {
  const auto router = with_random_adapters(with_lora(router_of<double>(4, 9, 16), {.rank = 2, .dropout = 0.3}), 17);
  const auto bank = bank_with_lora<double>(4, 9, 17, {.expert_ranks = mixed_ranks, .dropout = 0.4}, 18);
  const auto shared = bank_with_lora<double>(1, 9, 5, {.rank = 3, .dropout = 0.2}, 19);
  for (const Index tokens : {1, 9, 40}) {
    for (const std::uint64_t step : {0u, 1u}) {
      expect_true_gradients(WithSharedExpert(MoeLayer(router, bank), shared), tokens, 20, 40, {.seed = step});
    }
    expect_true_gradients(DenseLayer(shared), tokens, 20, 40, {.seed = 1});
  }
}

constexpr Index token_counts[] = {0, 1, 2, 15, 16, 17, 40, 200};

TEST(Merging, RefusesWhatDoesNotFitAndWritesNothing) {
  auto bank = random_bank<float>(3, 6, 5, 34);
  const auto before = bank;
  auto adapters = bank_with_lora<float>(3, 6, 5, {.rank = 2}, 35).adapters();
  adapters[2].down.b.resize(7, 2);
  EXPECT_EQ(error_of([&] { merge(adapters, bank); }), "merge: 2.down_proj: lora_B.rows() is 7, expected 6");
  adapters.pop_back();
  EXPECT_EQ(error_of([&] { merge(adapters, bank); }), "merge: adapters.size() is 2, expected 3");
  for (Index e = 0; e < 3; ++e) EXPECT_TRUE(same_bits(bank.w_gate()[e], before.w_gate()[e]));
}

TEST(LoraBank, RefusesWhatDoesNotFit) {
  const auto bank = random_bank<float>(3, 6, 5, 36);
  EXPECT_EQ(error_of([&] { with_lora(bank, {.expert_ranks = {1, 2}}); }), "LoRA: expert_ranks.size() is 2, expected 3");
  EXPECT_EQ(error_of([&] { with_lora(bank, {.rank = -1}); }), "LoRA: rank is -1, expected 0 to 9223372036854775807");
  EXPECT_EQ(error_of([&] { with_lora(bank, {.dropout = 1}); }), "LoraBank: dropout is 1.000000, expected 0 to below 1");
  auto adapters = with_lora(bank, {.rank = 2}).adapters();
  adapters[1].up.a.resize(2, 7);
  EXPECT_EQ(error_of([&] { LoraBank(bank, adapters); }), "LoraBank: 1.up_proj: lora_A.cols() is 7, expected 6");
  const auto router = router_of<float>(3, 6, 37);
  EXPECT_EQ(error_of([&] { LoraRouter(router, make_adapter<float>(4, 6, 2, 1, 1)); }),
            "LoraRouter: lora_B.rows() is 4, expected 3");
}

TEST(LoraLayers, TheirAdaptersMustFitAlsoWhereOneWasReplaced) {
  const auto error_after = [](const auto& replace) {
    MoeLayer layer(with_lora(router_of<float>(3, 6, 59), {.rank = 2}),
                   with_lora(random_bank<float>(3, 6, 5, 60), {.rank = 2}));
    replace(layer);
    return error_of([&] { layer.forward(Matrix<float>::Ones(6, 4)); });
  };
  EXPECT_EQ(error_after([](auto&) {}), "no error");
  EXPECT_EQ(error_after([](auto& its) { its.router().logits().adapter() = make_adapter<float>(3, 7, 2, 1, 1); }),
            "LoraLogits: lora_A.cols() is 7, expected 6");
  EXPECT_EQ(error_after([](auto& its) { its.experts().adapters()[1].up = make_adapter<float>(9, 6, 2, 1, 1); }),
            "LoraBank: 1.up_proj: lora_B.rows() is 9, expected 5");
  EXPECT_EQ(error_after([](auto& its) { its.experts().adapters().pop_back(); }),
            "LoraBank: adapters.size() is 2, expected 3");
}

TEST(LoraGradients, RefuseAdaptersOfOtherRanks) {
  const auto router = router_of<float>(3, 6, 59);
  const auto bank = random_bank<float>(3, 6, 5, 60);
  const MoeLayer layer(with_lora(router, {.rank = 2}), with_lora(bank, {.rank = 2}));
  auto wider = zeros_like(MoeLayer(with_lora(router, {.rank = 2}), with_lora(bank, {.expert_ranks = {2, 3, 2}})));
  auto other = zeros_like(MoeLayer(with_lora(router, {.rank = 1}), with_lora(bank, {.rank = 2})));
  auto tape = tape_of(layer);
  const auto x = random_matrix<Matrix<float>>(6, 9, 61);
  Matrix<float> y(6, 9), d_x = Matrix<float>::Zero(6, 9);
  forward(layer, x, y, tape);
  EXPECT_EQ(error_of([&] { backward(layer, x, y, tape, d_x, wider); }),
            "backward: the gradient of lora_A is 3 × 6, expected 2 × 6");
  EXPECT_EQ(error_of([&] { backward(layer, x, y, tape, d_x, other); }),
            "backward: the gradient of lora_A is 1 × 6, expected 2 × 6");
}

auto float_layer(double dropout = 0) {
  const auto bank = bank_with_lora<float>(6, 70, 90, {.expert_ranks = {0, 1, 8, 3, 2, 0}, .dropout = dropout}, 38);
  const auto shared = bank_with_lora<bfloat16>(1, 70, 50, {.rank = 4, .dropout = dropout}, 39);
  const auto router = with_random_adapters(with_lora(router_of<float>(6, 70, 40), {.rank = 2, .dropout = dropout}), 41);
  return WithSharedExpert(MoeLayer(router, bank), shared);
}

TEST(Lora, ForwardWithATapeIsForwardToTheLastBit) {
  const auto layer = float_layer(0.5);  // without a seed, nothing is left out
  for (const Index tokens : token_counts) {
    const auto x = random_matrix<Matrix<float>>(70, tokens, 42);
    Matrix<float> y(70, tokens);
    auto tape = tape_of(layer);
    forward(layer, x, y, tape);
    EXPECT_TRUE(same_bits(y, layer.forward(x))) << tokens;
  }
}

TEST(Lora, IsTheSameBitsForAnyNumberOfThreads) {
  const auto layer = float_layer(0.2);
  laws::expect_the_same_bits_for_any_number_of_threads(layer, {.seed = 7});
  const auto x = random_matrix<Matrix<float>>(70, 100, 43);
  const Matrix<float> y = layer.forward(x);
  for (const Index threads : {2, 3, 7}) EXPECT_TRUE(same_bits(layer.forward(x, test::OwnThreads{threads}), y));
}

TEST(Lora, AWarmStepAllocatesNothing) {
  const auto layer = float_layer(0.2);
  laws::expect_warm_steps_to_allocate_nothing(layer, {.seed = 3});
  const auto x = random_matrix<Matrix<float>>(70, 80, 45);
  Matrix<float> y(70, 80);
  Workspace<float> ws;
  layer.forward(x, y, ws);
  EXPECT_EQ(test::allocations_in([&] { layer.forward(x, y, ws); }), 0);
}

TEST(Lora, ItsGradientHoldsAdaptersAlone) {
  const auto layer = float_layer();
  auto gradient = zeros_like(layer);
  EXPECT_EQ(&gradient.layer().experts().base(), &layer.layer().experts().base());
  EXPECT_EQ(&gradient.layer().router().logits().base(), &layer.layer().router().logits().base());
  for (const auto& parameter : parameters(gradient)) EXPECT_TRUE(fits_pattern(parameter.name, "*.lora_*.weight"));
  TrainableLayer<float> held(layer);
  EXPECT_EQ(held.parameters().size(), 2u + 4 * 6 + 6);
  EXPECT_EQ(held.frozen_parameters().size(), 1u + 6 * 3 + 3);
}

TEST(Lora, ExpertsWithoutTokensGetNoGradient) {
  auto router = router_of<double>(4, 6, 47);
  auto bias = Eigen::VectorXd(4);
  bias << 0, 100, 0, 100;
  const MoeLayer layer(LinearTopK<double>(router.weight(), {.top_k = 2}, bias),
                       bank_with_lora<double>(4, 6, 5, {.rank = 2}, 48));
  const auto x = random_matrix<Matrix<double>>(6, 9, 49);
  auto gradients = gradients_of(layer, x, x);
  for (const auto& parameter : parameters(gradients.of_parameters)) {
    if (!parameter.name.starts_with("experts.")) continue;
    const bool met = parameter.name[8] == '1' || parameter.name[8] == '3';
    EXPECT_EQ(parameter.array().isZero(0), !met) << parameter.name;
  }
}

TEST(Lora, TrainsAndLeavesTheBaseAsItIs) {
  const auto bank = random_bank<bfloat16>(4, 6, 8, 50);
  const auto router = router_of<float>(4, 6, 51);
  const Frozen frozen(router);
  MoeLayer layer(frozen, with_lora(bank, {.expert_ranks = {0, 4, 0, 4}}));
  const auto before = layer;
  auto gradient = zeros_like(layer);
  auto tape = tape_of(layer);
  AdamW<float> adam(parameters(layer), {.learning_rate = 0.03, .weight_decay = 0});
  const auto x = random_matrix<Matrix<float>>(6, 60, 52);
  Matrix<float> y(6, 60), d_x = Matrix<float>::Zero(6, 60);
  double first = 0, last = 0;
  for (int step = 0; step < 60; ++step) {
    forward(layer, x, y, tape);
    last = double((y - x).squaredNorm());
    if (step == 0) first = last;
    set_to_zero(parameters(gradient));
    backward(layer, x, y - x, tape, d_x, gradient);
    adam.step(parameters(gradient));
  }
  EXPECT_LT(last, 0.8 * first);
  const auto& base = layer.experts().base();
  for (Index e = 0; e < 4; ++e) {
    EXPECT_TRUE(same_bits(base.w_gate()[e], bank.w_gate()[e]));
    EXPECT_TRUE(same_bits(base.w_up()[e], bank.w_up()[e]));
    EXPECT_TRUE(same_bits(base.w_down()[e], bank.w_down()[e]));
  }
  EXPECT_TRUE(same_bits(layer.router()->weight(), router.weight()));
  const Matrix<float> was = before.forward(x);
  Index met = 0;
  for (Index t = 0; t < x.cols(); ++t) {
    const auto& expert = tape.ws.routing.expert;
    const bool meets = expert[std::size_t(2 * t)] % 2 == 1 || expert[std::size_t(2 * t + 1)] % 2 == 1;
    met += meets;
    EXPECT_EQ(bool(same_bits(y.col(t), was.col(t))), !meets) << t;
  }
  EXPECT_GT(met, 0);
  EXPECT_LT(met, x.cols());
}

TEST(Lora, ReportsAdaptersThatLearnAndTheBaseThatDoesNot) {
  MoeLayer layer(with_lora(router_of<float>(2, 6, 53), {.rank = 1}),
                 with_lora(random_bank<bfloat16>(2, 6, 5, 54), {.expert_ranks = {0, 3}, .gate = false, .up = false}));
  EXPECT_EQ(training_report(layer, {"experts.*"}),
            "frozen  gate.lora_A.weight [1, 6]\n"
            "frozen  gate.lora_B.weight [2, 1]\n"
            "learns  experts.1.down_proj.lora_A.weight [3, 5]\n"
            "learns  experts.1.down_proj.lora_B.weight [6, 3]\n"
            "frozen  gate.weight [2, 6]\n"
            "frozen  experts.0.gate_proj.weight [5, 6]\n"
            "frozen  experts.0.up_proj.weight [5, 6]\n"
            "frozen  experts.0.down_proj.weight [6, 5]\n"
            "frozen  experts.1.gate_proj.weight [5, 6]\n"
            "frozen  experts.1.up_proj.weight [5, 6]\n"
            "frozen  experts.1.down_proj.weight [6, 5]\n"
            "2 of 11 parameters learn, 33 of 233 numbers\n");
}

TEST(Dropout, LeavesOutItsShareAndScalesTheRest) {
  const Eigen::VectorXd ones = Eigen::VectorXd::Ones(20000);
  Eigen::VectorXd got(20000), again(20000), other(20000);
  for (const double share : {0.1, 0.5, 0.9}) {
    const Dropout dropout(share, 1, 2);
    dropout.copy(3, 0, ones, got);
    const auto left_out = double((got.array() == 0).count());
    EXPECT_NEAR(left_out / 20000, share, 5 * std::sqrt(share * (1 - share) / 20000));
    EXPECT_TRUE((got.array() == 0 || got.array() == 1 / (1 - share)).all());
    dropout.copy(3, 0, ones, again);
    EXPECT_EQ(got, again);
    dropout.copy(3, 100, ones.head(50), again.head(50));
    EXPECT_EQ(again.head(50), got.segment(100, 50));
    const auto differs = [&](const Dropout& its, Index token) {
      its.copy(token, 0, ones, other);
      return other != got;
    };
    EXPECT_TRUE(differs(dropout, 4));
    EXPECT_TRUE(differs(dropout.of_matrix(1), 3));
    EXPECT_TRUE(differs(Dropout(share, 2, 2), 3));
    EXPECT_TRUE(differs(Dropout(share, 1, 3), 3));
  }
  EXPECT_TRUE(Dropout(0.5, 1, {}).is_off());
}

TEST(Dropout, OfAStepChangesWhatALayerComputesAndOnlyThen) {
  const auto layer = float_layer(0.5);
  const auto x = random_matrix<Matrix<float>>(70, 40, 55);
  const auto learning = [&](std::optional<std::uint64_t> step) {
    auto tape = tape_of(layer);
    tape.workspace().side.seed = step;
    Matrix<float> y(70, 40);
    forward(layer, x, y, tape);
    return y;
  };
  EXPECT_TRUE(same_bits(learning(1), learning(1)));
  EXPECT_FALSE(same_bits(learning(1), learning(2)));
  EXPECT_FALSE(same_bits(learning(1), layer.forward(x)));
}

}  // namespace
}  // namespace moe
