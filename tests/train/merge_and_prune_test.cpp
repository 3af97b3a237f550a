// Layers with fewer experts: what they must not change, and by how much they change the rest.
#include <cmath>
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

constexpr Index d = 6, ff = 9;

GatedFfnBiases<double> random_biases(Index experts) {
  return {random_matrix<Matrix<double>>(ff, experts, 1), random_matrix<Matrix<double>>(ff, experts, 2),
          random_matrix<Matrix<double>>(d, experts, 3)};
}

GatedFfnBank<double> bank_of(Index experts, bool biased) {
  const auto bank = random_bank<double>(experts, d, ff, 4);
  return {bank.w_gate(), bank.w_up(), bank.w_down(), {}, biased ? random_biases(experts) : GatedFfnBiases<double>{}};
}

MoeLayer<LinearTopK<double>, GatedFfnBank<double>> layer_of(Index experts, const TopKOptions& options,
                                                            const Eigen::VectorXd& bias = {}, bool biased = true) {
  return {LinearTopK<double>(random_weight<double>(experts, d, 5), options, bias), bank_of(experts, biased)};
}

// ---- Merging ----

/// Experts 0, 2, 5 are one and the same, and so are 1 and 4.
const std::vector<std::vector<Index>> groups{{5, 0, 2}, {1, 4}};

template <class Layer>
void make_groups_alike(Layer& layer) {
  for (const auto& [copy, from] : {std::pair<Index, Index>{0, 5}, {2, 5}, {1, 4}}) {
    auto to = layer.experts()[copy];
    const auto its = layer.experts()[from];
    to.w_gate = its.w_gate;
    to.w_up = its.w_up;
    to.w_down = its.w_down;
    to.b_gate = its.b_gate;
    to.b_up = its.b_up;
    to.b_down = its.b_down;
  }
}

TEST(MergeExperts, ThatAreAlikeChangesNothing) {
  const auto x = random_matrix<Matrix<double>>(d, 40, 6);
  for (const bool biased : {false, true}) {
    for (const Score score : {Score::softmax, Score::softmax_of_chosen, Score::sigmoid}) {
      for (const WeightOn weight_on : {WeightOn::output, WeightOn::input}) {
        for (const Index top_k : {1, 2, 3, 6}) {
          auto layer = layer_of(6, {.top_k = top_k, .score = score, .weight_on = weight_on}, {}, biased);
          make_groups_alike(layer);
          for (const std::vector<Index>& load : {std::vector<Index>{1, 0, 7, 3, 2, 5}, {0, 0, 0, 0, 0, 0}}) {
            const auto merged = merge_experts(layer, groups, load);
            EXPECT_EQ(merged.num_experts(), 3);
            EXPECT_TRUE(is_close(merged.forward(x), layer.forward(x))) << "top " << top_k;
          }
        }
      }
    }
  }
}

TEST(MergeExperts, OfAnUpcycledLayerGivesTheDenseFfn) {
  const auto dense = random_bank<double>(1, d, ff, 7);
  const auto sparse = upcycle(dense, {.copies = 4, .active_copies = 2, .shards = 3});
  const auto merged = merge_experts(sparse, {{0, 3, 6, 9}, {1, 4, 7, 10}, {2, 5, 8, 11}}, std::vector<Index>(12, 1));
  const auto x = random_matrix<Matrix<double>>(d, 20, 8);
  EXPECT_EQ(merged.num_experts(), 3);
  EXPECT_TRUE(is_close(merged.forward(x), DenseLayer(dense).forward(x)));
}

TEST(MergeExperts, WeighsThemByLoad) {
  const auto layer = layer_of(3, {.top_k = 1});
  const auto merged = merge_experts(layer, {{2, 0}}, {3, 10, 1});
  const auto &was = layer.experts(), &is = merged.experts();
  EXPECT_EQ(merged.router().merged(), (std::vector<Index>{0, 1, 0}));
  EXPECT_TRUE(is_close(is.w_up()[0], 0.75 * was.w_up()[0] + 0.25 * was.w_up()[2]));
  EXPECT_TRUE(is_close(is.biases().down.col(0), 0.75 * was.biases().down.col(0) + 0.25 * was.biases().down.col(2)));
  EXPECT_TRUE(same_bits(is.w_down()[1], was.w_down()[1]));
  EXPECT_TRUE(same_bits(is.biases().gate.col(1), was.biases().gate.col(1)));
}

/// Experts 0 and 2 are one and the same; nobody chooses 3.
TEST(Surgery, KnowsExpertsThatAreNotGated) {
  const auto random = random_bank<double, ReluSquared>(4, d, ff, 20);
  const auto biases = random_biases(4);
  FfnBank<double, ReluSquared> bank(random.w_up(), random.w_down(), {}, {.up = biases.up, .down = biases.down});
  const auto from = bank[0];
  auto to = bank[2];
  to.w_up = from.w_up, to.w_down = from.w_down, to.b_up = from.b_up, to.b_down = from.b_down;
  const LinearTopK<double> router(random_weight<double>(4, d, 21), {.top_k = 2, .score = Score::sigmoid},
                                  Eigen::VectorXd{{0, 0, 0, -1e4}});
  const MoeLayer layer(router, bank);
  const auto x = random_matrix<Matrix<double>>(d, 40, 22);
  const auto fewer = merge_experts(layer, {{0, 2}}, {1, 2, 3, 4});
  EXPECT_EQ(fewer.num_experts(), 3);
  EXPECT_TRUE(is_close(fewer.forward(x), layer.forward(x)));
  EXPECT_TRUE(same_bits(keep_experts(layer, {0, 1, 2}).forward(x), layer.forward(x)));

  const auto some = random_bank<double, ReluSquared>(1, d, ff, 23);
  const DenseLayer dense(FfnBank<double, ReluSquared>(some.w_up(), some.w_down(), {},
                                                      {.up = biases.up.col(1), .down = biases.down.col(1)}));
  for (const Index shards : {1, 3}) {
    EXPECT_TRUE(is_close(upcycle(dense.expert(), {.copies = 3, .shards = shards}).forward(x), dense.forward(x)));
  }
  const auto noisy = upcycle(dense.expert(), {.copies = 3, .noise = 0.01});
  EXPECT_NEAR((noisy.experts().w_up()[2] - some.w_up()[0]).norm() / some.w_up()[0].norm(), 0.01, 1e-12);
}

TEST(MergeExperts, OfNoGroupsIsTheLayer) {
  const auto layer = layer_of(5, {.top_k = 2});
  const auto x = random_matrix<Matrix<double>>(d, 30, 9);
  EXPECT_TRUE(same_bits(merge_experts(layer, {}, {0, 1, 2, 3, 4}).forward(x), layer.forward(x)));
}

TEST(MergeExperts, RefusesWhatIsNoGrouping) {
  const auto layer = layer_of(3, {.top_k = 1});
  const auto error_with = [&](const std::vector<std::vector<Index>>& its, const std::vector<Index>& load) {
    return error_of([&] { merge_experts(layer, its, load); });
  };
  EXPECT_EQ(error_with({{0, 3}}, {1, 1, 1}), "merge_experts: expert is 3, expected 0 to 2");
  EXPECT_EQ(error_with({{0, 1}, {2, 1}}, {1, 1, 1}), "merge_experts: expert 1 is in a group twice");
  EXPECT_EQ(error_with({{0, 1}, {}}, {1, 1, 1}), "merge_experts: a group is empty");
  EXPECT_EQ(error_with({{0, 1}}, {1, 1}), "merge_experts: load.size() is 2, expected 3");
  EXPECT_TRUE(error_with({{0, 1}}, {1, -1, 1}).starts_with("merge_experts: load is -1, expected 0 to "));
}

// ---- Pruning ----

/// Nobody chooses 1 and 4, whose share of a softmax is nothing.
MoeLayer<LinearTopK<double>, GatedFfnBank<double>> layer_with_idle_experts(const TopKOptions& options) {
  return layer_of(6, options, Eigen::VectorXd{{0, -1e4, 0, 0, -1e4, 0}});
}

TEST(KeepExperts, WithoutThoseThatNobodyUsesChangesNoBit) {
  for (const Index tokens : {1, 7, 64}) {
    const auto x = random_matrix<Matrix<double>>(d, tokens, 10);
    for (const Score score : {Score::sigmoid, Score::sqrt_softplus, Score::softmax_of_chosen}) {
      for (const bool renormalize : {false, true}) {
        for (const Index top_k : {1, 2, 4}) {
          const auto layer = layer_with_idle_experts({.top_k = top_k, .score = score, .renormalize = renormalize});
          EXPECT_TRUE(same_bits(keep_experts(layer, {0, 2, 3, 5}).forward(x), layer.forward(x)))
              << tokens << " tokens, top " << top_k;
        }
      }
    }
    const auto layer = layer_with_idle_experts({.top_k = 2, .score = Score::softmax});
    EXPECT_TRUE(is_close(keep_experts(layer, {0, 2, 3, 5}).forward(x), layer.forward(x)));
  }
}

TEST(KeepExperts, KeepsAllThatIsTheirs) {
  const auto layer =
      MoeLayer(LinearTopK<double>(random_weight<double>(5, d, 1), {.top_k = 2, .score = Score::sigmoid},
                                  random_matrix<Eigen::VectorXd>(5, 1, 2), random_matrix<Eigen::VectorXd>(5, 1, 3)),
               bank_of(5, true));
  const auto some = keep_experts(layer, {1, 4});
  for (const Index i : {0, 1}) {
    const Index was = i == 0 ? 1 : 4;
    EXPECT_TRUE(same_bits(some.router().weight().row(i), layer.router().weight().row(was)));
    EXPECT_EQ(some.router().bias()(i), layer.router().bias()(was));
    EXPECT_EQ(some.router().selection_bias()(i), layer.router().selection_bias()(was));
    EXPECT_TRUE(same_bits(some.experts().w_down()[i], layer.experts().w_down()[was]));
    EXPECT_TRUE(same_bits(some.experts().biases().up.col(i), layer.experts().biases().up.col(was)));
  }
}

TEST(KeepExperts, KeepsThoseThatAreAlwaysChosen) {
  const LinearTopK<double> router(random_weight<double>(6, d, 1),
                                  {.top_k = 2, .score = Score::sigmoid, .renormalize = true, .always_chosen = 2},
                                  Eigen::VectorXd{{0, -1e4, 0, 0, 0, 0}}, random_matrix<Eigen::VectorXd>(4, 1, 3, 0.1));
  const MoeLayer layer(router, bank_of(6, true));
  const auto some = keep_experts(layer, {0, 2, 3, 4, 5});
  EXPECT_EQ(some.router().selection_bias()(1), router.selection_bias()(2));
  const auto x = random_matrix<Matrix<double>>(d, 7, 10);
  EXPECT_TRUE(same_bits(some.forward(x), layer.forward(x)));
  EXPECT_EQ(error_of([&] { keep_experts(layer, {0, 2, 3, 5}); }),
            "keep_experts: the first of the last 2 kept, which are always chosen, is 3, expected 4");
  EXPECT_EQ(error_of([&] { keep_experts(layer, {0, 4, 5}); }), "keep_experts: kept.size() is 3, expected 4 to 6");
}

TEST(KeepExperts, MostUsed) {
  EXPECT_EQ(most_used({3, 0, 9, 3, 3}, 3), (std::vector<Index>{0, 2, 3}));
  EXPECT_EQ(most_used({3, 0}, 2), (std::vector<Index>{0, 1}));
  EXPECT_EQ(error_of([] { most_used({3, 0}, 3); }), "most_used: count is 3, expected 1 to 2");
}

TEST(KeepExperts, RefusesWhatCannotBeKept) {
  const auto layer = layer_of(4, {.top_k = 2});
  const auto error_with = [&](const std::vector<Index>& kept) { return error_of([&] { keep_experts(layer, kept); }); };
  EXPECT_EQ(error_with({1}), "keep_experts: kept.size() is 1, expected 2 to 4");
  EXPECT_EQ(error_with({1, 4}), "keep_experts: kept[1] is 4, expected 2 to 3");
  EXPECT_EQ(error_with({2, 1}), "keep_experts: kept[1] is 1, expected 3 to 3");
  EXPECT_EQ(error_of([] { keep_experts(layer_of(4, {.top_k = 1, .num_groups = 2}), {0, 1}); }),
            "keep_experts: num_groups of the router is 2, expected 1");
}

// ---- What it costs ----

TEST(ChangeReport, TellsHowFarOutputsAreOff) {
  const auto layer = layer_of(3, {.top_k = 1, .score = Score::softmax_of_chosen});
  auto other = layer;  // expert 2 answers twice
  other.experts()[2].w_down *= 2;
  other.experts()[2].b_down *= 2;
  const auto x = random_matrix<Matrix<double>>(d, 50, 11);
  const Matrix<double> was = layer.forward(x), is = other.forward(x);
  const auto change = measure_change(layer, other, x);
  EXPECT_NEAR(change.relative, (is - was).norm() / was.norm(), 1e-12);
  EXPECT_GT(change.relative, 0);
  EXPECT_NEAR(change.worst_token, 1, 1e-12);
  EXPECT_EQ(measure_change(layer, layer, x).worst_token, 0);
  EXPECT_EQ(measure_change(layer, other, x.leftCols(0)).relative, 0);
}

TEST(ChangeReport, SaysItInALine) {
  const auto layer = layer_of(3, {.top_k = 1});
  const auto x = random_matrix<Matrix<double>>(d, 50, 12);
  EXPECT_EQ(change_report(layer, keep_experts(layer, {0, 1, 2}), x),
            "3 experts → 3: on 50 tokens, outputs are off by 0 of their norm, by 0 at the worst token\n");
}

}  // namespace
}  // namespace moe
