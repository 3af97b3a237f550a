// What a step through every router promises: its bits, and no allocations.
#include "allocations.hpp"

#include "moe/train.hpp"

#include <vector>

#include <gtest/gtest.h>

#include "laws/gradient_laws.hpp"
#include "moe/moe.hpp"
#include "random.hpp"
#include "train/factories.hpp"

namespace moe {
namespace {

using test::layer_of;
using test::random_matrix;
using test::random_rows;
using test::random_vector;

/// f(router in float, side inputs) for every router, with 70 tokens.
template <class F>
void for_each_router(const F& f) {
  const auto rows = [](unsigned seed) { return random_rows<float>(6, 40, seed); };
  static std::vector<Index> ids;
  ids.clear();
  for (Index t = 0; t < 70; ++t) ids.push_back(t * 7 % 11);
  static const auto previous = random_matrix<Matrix<float>>(3, 70, 40);
  f(NoisyTopK<float>(rows(1), rows(2), {.top_k = 2}), SideInputs<float>{.seed = 3});
  f(SparseMixer<float>(rows(4)), {});
  f(TopP<float>(rows(5), {}), {});
  f(TopP<float>(rows(5), {.renormalize = true}), {});
  f(ReluRouter<float>(rows(6), random_vector<float>(6, 7)), {});
  f(CosineTopK<float>(random_rows<float>(9, 40, 8), random_rows<float>(6, 9, 9), {.top_k = 2}, 1), {});
  f(NormedTopK<float>(rows(10), random_vector<float>(40, 11), random_vector<float>(6, 12), {.top_k = 2}), {});
  f(CarriedTopK<float>(rows(13), random_rows<float>(6, 3, 14), {.top_k = 2}),
    {.previous_logits = {previous.data(), std::size_t(previous.size())}});
  f(BaseLayersRouter<float>(rows(15)), {});
  f(QuantileBalanced<float>(rows(16), {.choice = {.top_k = 2}}), {});
  f(ExpertChoice<float>(rows(17)), {});
  f(Sinkhorn<float>(rows(18), {.top_k = 2}), {});
  f(TokenHash<float>(rows(19), {.top_k = 2}, random_hash_table(11, 6, 2, 20)), {.token_ids = ids});
  f(RandomRouter<float>(40, 6, 2, 21), {});
  f(WithSecondExpert(LinearTopK<float>(rows(22), {.top_k = 2, .renormalize = true}), {}), {.seed = 23});
  f(Replay(LinearTopK<float>(rows(24), {.top_k = 2})), {});
  static Routing<float> recorded;
  recorded.clear();
  for (Index t = 0; t < 140; ++t) recorded.add(t / 2, t * 5 % 6, 0.5F);
  f(Replay(LinearTopK<float>(rows(24), {.top_k = 2}), {.weights = ReplayedWeights::anew}), {.recorded = &recorded});
}

TEST(RouterGradients, AreTheSameBitsForAnyNumberOfThreads) {
  for_each_router([](const auto& router, const SideInputs<float>& side) {
    laws::expect_the_same_bits_for_any_number_of_threads(layer_of(router), side);
  });
}

TEST(RouterGradients, AWarmStepAllocatesNothing) {
  for_each_router([](const auto& router, const SideInputs<float>& side) {
    laws::expect_warm_steps_to_allocate_nothing(layer_of(router), side);
  });
}

}  // namespace
}  // namespace moe
