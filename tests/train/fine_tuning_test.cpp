// What learns and what does not; and a dense FFN that becomes sparse.
#include <algorithm>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "compare.hpp"
#include "errors.hpp"
#include "moe/moe.hpp"
#include "moe/surgery.hpp"
#include "moe/train.hpp"
#include "random.hpp"

namespace moe {
namespace {

using test::error_of;
using test::is_close;
using test::random_matrix;
using test::same_bits;

auto make_layer(unsigned seed) {
  return MoeLayer(LinearTopK<float>(random_weight<float>(4, 6, seed), {.top_k = 1}),
                  random_bank<float>(4, 6, 8, seed + 1));
}

TEST(FitsPattern, ReadsAStarAsAnyText) {
  EXPECT_TRUE(fits_pattern("experts.3.up_proj.weight", "experts.3.*"));
  EXPECT_FALSE(fits_pattern("experts.33.up_proj.weight", "experts.3.*"));
  EXPECT_TRUE(fits_pattern("experts.33.up_proj.weight", "*.up_proj.*"));
  EXPECT_TRUE(fits_pattern("a", "*"));
  EXPECT_TRUE(fits_pattern("", "*"));
  EXPECT_TRUE(fits_pattern("abcabc", "a*c"));
  EXPECT_FALSE(fits_pattern("abcabd", "a*c"));
  EXPECT_FALSE(fits_pattern("a", ""));
}

TEST(FineTuning, ChangesOnlyWhatLearns) {
  auto layer = make_layer(1);
  const auto before = layer;
  auto gradient = zeros_like(layer);
  auto tape = tape_of(layer);
  const std::vector<std::string> learn{"experts.1.*"};
  AdamW<float> adam(matching(parameters(layer), learn), {.learning_rate = 0.1});
  const auto x = random_matrix<Matrix<float>>(6, 40, 3);
  Matrix<float> y(6, 40), d_x = Matrix<float>::Zero(6, 40);
  for (int step = 0; step < 5; ++step) {
    forward(layer, x, y, tape);
    set_to_zero(parameters(gradient));
    backward(layer, x, y - x, tape, d_x, gradient);
    adam.step(matching(parameters(gradient), learn));
  }
  auto unchanged = before;
  const auto now = parameters(layer), then = parameters(unchanged);
  for (std::size_t p = 0; p < now.size(); ++p) {
    EXPECT_EQ(bool(same_bits(now[p].matrix(), then[p].matrix())), !now[p].name.starts_with("experts.1."))
        << now[p].name;
  }
  const Matrix<float> was = before.forward(x);
  forward(layer, x, y, tape);
  Index met = 0;
  for (Index t = 0; t < x.cols(); ++t) {  // a token that meets only frozen experts has the same answer
    const bool meets = tape.ws.routing.expert[std::size_t(t)] == 1;
    met += meets;
    EXPECT_EQ(bool(same_bits(y.col(t), was.col(t))), !meets) << t;
  }
  EXPECT_GT(met, 0);
  EXPECT_LT(met, x.cols());
}

TEST(FineTuning, ReportsWhatLearnsAndRefusesAPatternThatFitsNothing) {
  auto layer = make_layer(1);
  const auto all = parameters(layer);
  const std::string report = training_report(all, matching(all, {"gate.*", "experts.2.up*"}));
  EXPECT_TRUE(report.starts_with("learns  gate.weight [4, 6]\nfrozen  experts.0.gate_proj.weight [8, 6]\n")) << report;
  EXPECT_TRUE(report.ends_with("2 of 13 parameters learn, 72 of 600 numbers\n")) << report;
  EXPECT_EQ(error_of([&] { matching(all, {"gate.*", "experts.4.*"}); }),
            "matching: no parameter of 13 fits \"experts.4.*\"");
}

/// Exactly where y gives a router no gradient, its layer's report says so.
TEST(TrainingReport, NotesARouterThatLearnsNothingFromY) {
  const auto x = random_matrix<Matrix<float>>(6, 40, 3), d_y = random_matrix<Matrix<float>>(6, 40, 4);
  const auto check = [&](auto layer, bool dead) {
    const std::string report = training_report(layer);
    EXPECT_EQ(report.ends_with("one expert, whose weight is divided by itself: y gives it no gradient, only losses on "
                               "logits do\n"),
              dead)
        << report;
    TrainableLayer<float> any(layer);
    EXPECT_EQ(training_report(any), report);
    Matrix<float> y(6, 40), d_x = Matrix<float>::Zero(6, 40);
    any.forward(x, y);
    any.backward(x, d_y, d_x);
    float largest = 0;
    for (const auto& gradient : any.gradients()) {
      if (gradient.name.starts_with("gate.")) largest = std::max(largest, gradient.array().abs().maxCoeff());
    }
    EXPECT_EQ(largest < 1e-6F, dead) << largest << " by\n" << report;
  };
  const auto with = [](const TopKOptions& options) {
    return MoeLayer(LinearTopK<float>(random_weight<float>(4, 6, 1), options), random_bank<float>(4, 6, 8, 2));
  };
  check(with({.top_k = 1}), false);
  check(with({.top_k = 1, .score = Score::sigmoid}), false);
  check(with({.top_k = 2, .renormalize = true}), false);
  check(with({.top_k = 2, .score = Score::softmax_of_chosen}), false);
  check(with({.top_k = 1, .renormalize = true, .floor = 2}), false);
  check(with({.top_k = 1, .renormalize = true}), true);
  check(with({.top_k = 1, .score = Score::sigmoid, .renormalize = true, .epsilon = 1e-20, .scale = 2.5}), true);
  check(with({.top_k = 1, .score = Score::softmax_of_chosen}), true);
  check(with({.top_k = 1, .renormalize = true, .always_chosen = 1}), false);
  check(upcycle(random_bank<float>(1, 6, 12, 1), {.copies = 4, .active_copies = 1}), true);
  check(upcycle(random_bank<float>(1, 6, 12, 1), {.copies = 4, .active_copies = 2, .noise = 0.1}), false);
  check(MoeLayer(with_lora(LinearTopK<float>(random_weight<float>(4, 6, 1), {.top_k = 1, .renormalize = true})),
                 with_lora(random_bank<float>(4, 6, 8, 2))),
        true);
  check(AffineOutput(MoeLayer(WithCapacity(LinearTopK<float>(random_weight<float>(4, 6, 1), {.top_k = 1}),
                                           {.capacity = fixed_capacity(20), .renormalize = true}),
                              random_bank<float>(4, 6, 8, 2)),
                     2.0F),
        true);
}

TEST(Merged, OfATrainableLayerServesWithItsAdapters) {
  WithSharedExpert layer(
      MoeLayer(with_lora(LinearTopK<float>(random_weight<float>(4, 6, 1), {.top_k = 2}), {.rank = 2}),
               with_lora(random_bank<float>(4, 6, 8, 2), {.rank = 2})),
      with_lora(random_bank<float>(1, 6, 8, 3), {.rank = 2}), random_weight<float>(1, 6, 4));
  for (const auto& parameter : parameters(layer)) {
    parameter.matrix() = random_matrix<Weight<float>>(parameter.rows, parameter.cols, 7);
  }
  const auto x = random_matrix<Matrix<float>>(6, 40, 3);
  const Matrix<float> expected = layer.forward(x);
  TrainableLayer<float> any(layer);
  AnyLayer<float> served = merged(any);
  for (const auto& parameter : any.parameters()) parameter.array().setZero();  // it has weights of its own
  EXPECT_TRUE(is_close(served.forward(x), expected));
}

TEST(Upcycling, ComputesWhatTheDenseFfnDid) {
  for (const bool biased : {false, true}) {
    GatedFfnBiases<double> biases;
    if (biased) {
      biases = {random_matrix<Matrix<double>>(12, 1, 1), random_matrix<Matrix<double>>(12, 1, 2),
                random_matrix<Matrix<double>>(7, 1, 3)};
    }
    const auto plain = random_bank<double>(1, 7, 12, 4);
    const DenseLayer dense(GatedFfnBank<double>(plain.w_gate(), plain.w_up(), plain.w_down(), {}, biases));
    const auto x = random_matrix<Matrix<double>>(7, 30, 5);
    for (const Index shards : {1, 2, 3, 12}) {
      for (const Index active : {1, 2, 4}) {
        const auto sparse = upcycle(dense.expert(), {.copies = 4, .active_copies = active, .shards = shards});
        EXPECT_EQ(sparse.num_experts(), 4 * shards);
        EXPECT_TRUE(is_close(sparse.forward(x), dense.forward(x))) << shards << " shards, " << active << " active";
      }
    }
  }
}

TEST(Upcycling, NoiseSetsCopiesApart) {
  const auto dense = random_bank<double>(1, 7, 12, 6);
  const auto sparse = upcycle(dense, {.copies = 3, .active_copies = 1, .noise = 0.01});
  for (Index e = 0; e < 3; ++e) {
    const Weight<double> off = sparse.experts().w_up()[e] - dense.w_up()[0];
    EXPECT_NEAR(off.norm() / dense.w_up()[0].norm(), 0.01, 1e-12);
    EXPECT_EQ(sparse.experts().w_up()[e].isApprox(sparse.experts().w_up()[0], 1e-4), e == 0);
  }
}

TEST(Upcycling, RefusesWhatDoesNotDivide) {
  EXPECT_EQ(error_of([] { upcycle(random_bank<float>(1, 7, 12, 1), {.shards = 5}); }),
            "upcycle: shards 5 does not divide d_ff 12");
  EXPECT_EQ(error_of([] { upcycle(random_bank<float>(2, 7, 12, 1)); }),
            "upcycle: dense.num_experts() is 2, expected 1");
  EXPECT_EQ(error_of([] { upcycle(random_bank<float>(1, 7, 12, 1), {.copies = 2, .active_copies = 3}); }),
            "upcycle: active_copies is 3, expected 1 to 2");
}

}  // namespace
}  // namespace moe
