/// @file  Banks with rows interleaved: their answers are those of the bank.
#include "moe/surgery/pack.hpp"

#include <string>
#include <utility>

#include <gtest/gtest.h>

#include "errors.hpp"
#include "moe/experts/gated_ffn_bank.hpp"
#include "moe/formats/encode_ggml.hpp"
#include "moe/formats/encode_k.hpp"
#include "moe/layers/moe_layer.hpp"
#include "moe/models/random.hpp"
#include "moe/routers/linear_top_k.hpp"
#include "moe/runtime/executors/openmp.hpp"
#include "moe/surgery/quantize.hpp"

namespace moe::test {
namespace {

constexpr Index experts = 3, d_model = 256, d_ff = 320;  // neither is a multiple of 64 · 3

Workspace<float> workspace_of(Products products, bool invariant = false) {
  Workspace<float> ws;
  ws.numerics = {.products = products, .batch_invariant = invariant};
  return ws;
}

template <class Layer>
Matrix<float> forward(const Layer& layer, const Matrix<float>& x, Workspace<float> ws, Index workers) {
  Matrix<float> y(x.rows(), x.cols());
  layer.forward(x, y, ws, OpenMp(workers));
  return y;
}

template <class T>
auto coded_layer(Index ff = d_ff) {
  return MoeLayer(LinearTopK<float>(random_weight<float>(experts, d_model, 1), {.top_k = 2}),
                  quantize<T>(random_bank<float>(experts, d_model, ff, 2)));
}

template <class T>
struct PackedBank : testing::Test {};
using Formats = testing::Types<Q4_0, Q8_0, IQ4_NL, GgmlMxfp4>;
TYPED_TEST_SUITE(PackedBank, Formats);

TYPED_TEST(PackedBank, HasTheExactAnswersOfTheBank) {
  const auto layer = coded_layer<TypeParam>();
  const auto its = packed(layer);
  for (const Index tokens : {0, 1, 5, 40}) {
    const auto x = random_tokens<float>(d_model, tokens, 3);
    EXPECT_EQ(forward(its, x, workspace_of(Products::exact), 1), forward(layer, x, workspace_of(Products::exact), 1));
  }
}

TYPED_TEST(PackedBank, HasTheSameFastAnswersOnAnyWorkersInAnyBatch) {
  const auto layer = coded_layer<TypeParam>();
  const auto its = packed(layer);
  const auto x = random_tokens<float>(d_model, 40, 4);
  const Matrix<float> all = forward(its, x, workspace_of(Products::fast), 1);
  const Matrix<float> plain = forward(layer, x, workspace_of(Products::fast), 1);
  EXPECT_LT((all - plain).norm(), 1e-3F * plain.norm());  // a code of a hidden number may round the other way
  for (const Index workers : {2, 3}) EXPECT_EQ(forward(its, x, workspace_of(Products::fast), workers), all);
  const auto invariant = workspace_of(Products::fast, /*invariant=*/true);  // the router's sums depend on the batch
  const Matrix<float> of_each = forward(its, x, invariant, 1);
  for (const Index tokens : {1, 3, 9, 25}) {
    EXPECT_EQ(forward(its, x.leftCols(tokens), invariant, 2), of_each.leftCols(tokens));
  }
}

TEST(PackedBankOf, KTypesHaveTheirAnswersToo) {
  const auto expect_answers = [](const auto& layer) {
    const auto its = packed(layer);
    const auto x = random_tokens<float>(d_model, 20, 5);
    EXPECT_EQ(forward(its, x, workspace_of(Products::exact), 2), forward(layer, x, workspace_of(Products::exact), 1));
    const Matrix<float> all = forward(its, x, workspace_of(Products::fast), 1);
    for (const Index workers : {2, 3}) EXPECT_EQ(forward(its, x, workspace_of(Products::fast), workers), all);
  };
  expect_answers(coded_layer<Q4_K>(512));
  expect_answers(coded_layer<Q6_K>(512));
}

TEST(PackedBankOf, StatesItsBytes) {
  const auto bank = packed(coded_layer<Q4_K>(512).experts());
  EXPECT_EQ(packed_bytes(bank), Index(experts * 3 * d_model * 512 * 4.625 / 8));
  EXPECT_EQ(error_of([&] { packed_bytes(coded_layer<Q4_K>(512).experts()); }),
            "packed_bytes: expert 0 is Q4_K, expected a packed format: packed(bank)");
}

TEST(PackedBankOf, RefusesByNameWhatItCannotPack) {
  const auto layer = coded_layer<Q5_0>();
  EXPECT_EQ(error_of([&] { packed(layer); }), "packed: w_gate of expert 0 is Q5_0, which has no packed form");
}

}  // namespace
}  // namespace moe::test
