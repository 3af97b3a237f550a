/// @file  Every router that learns, one of each, with what it reads beside 70 tokens.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <tuple>
#include <utility>
#include <vector>

#include "mlp_router_factory.hpp"
#include "moe/moe.hpp"
#include "random.hpp"
#include "train/factories.hpp"

namespace moe::test {

/// A router of 6 experts and 40 features, and side inputs of 70 tokens that live on.
template <class R>
struct RouterCase {
  R router;
  SideInputs<float> side = {};
};
template <class R>
RouterCase(R, SideInputs<float> = {}) -> RouterCase<R>;

inline Weight<float> rows_of_experts(unsigned seed) { return random_rows<float>(6, 40, seed); }

inline auto renormalizing_router(unsigned seed) {
  return LinearTopK<float>(rows_of_experts(seed), {.top_k = 2, .renormalize = true});
}

inline auto cosine_logits() {
  return CosineLogits<float>(random_rows<float>(9, 40, 8), random_rows<float>(6, 9, 9), /*log_scale=*/1);
}

inline auto random_adapter() {
  return Adapter<float>{random_rows<float>(3, 40, 26), random_rows<float>(6, 3, 27), /*alpha=*/2};
}

/// A std::tuple of RouterCase: of those with a name, of filters around one, and of parts that no name puts together.
inline auto all_routers() {
  static const std::vector<Index> ids = [] {
    std::vector<Index> made;
    for (Index t = 0; t < 70; ++t) made.push_back(t * 7 % 11);
    return made;
  }();
  static const auto previous = random_matrix<Matrix<float>>(3, 70, 40);
  const std::span<const float> carried{previous.data(), std::size_t(previous.size())};
  static const auto previous_state = random_matrix<Matrix<float>>(17, 70, 41);
  const std::span<const float> state{previous_state.data(), std::size_t(previous_state.size())};
  static const Routing<float> recorded = [] {
    Routing<float> made;
    for (Index t = 0; t < 140; ++t) made.add(t / 2, t * 5 % 6, 0.5F);
    return made;
  }();
  static const std::vector<std::uint8_t> modality = [] {
    std::vector<std::uint8_t> made;
    for (int t = 0; t < 70; ++t) made.push_back(std::uint8_t(t % 3 == 1));
    return made;
  }();
  const auto rows = rows_of_experts;
  const HashTable table = random_hash_table(11, 6, 2, 20);
  return std::tuple{
      RouterCase{LinearTopK<float>(rows(28), {.top_k = 2}, random_vector<float>(6, 29), random_vector<float>(6, 30))},
      RouterCase{NoisyTopK<float>(rows(1), rows(2), {.top_k = 2}), {.seed = 3}},
      RouterCase{SparseMixer<float>(rows(4))},
      RouterCase{TopP<float>(rows(5), {})},
      RouterCase{TopP<float>(rows(5), {.renormalize = true})},
      RouterCase{ReluRouter<float>(rows(6), random_vector<float>(6, 7))},
      RouterCase{CosineTopK<float>(random_rows<float>(9, 40, 8), random_rows<float>(6, 9, 9), {.top_k = 2}, 1)},
      RouterCase{NormedTopK<float>(rows(10), random_vector<float>(40, 11), random_vector<float>(6, 12), {.top_k = 2})},
      RouterCase{CarriedTopK<float>(rows(13), random_rows<float>(6, 3, 14), {.top_k = 2}),
                 {.previous_logits = carried}},
      RouterCase{
          ShapedTopK<float>(rows(37), {.top_k = 2}, {.multiplier = 0.5, .soft_cap = 3}, random_vector<float>(6, 38))},
      RouterCase{MlpTopK<float>(random_mlp_router<float>(6, 40, 17, 42), {.top_k = 2}), {.previous_state = state}},
      RouterCase{TopKByModality<float>({LinearTopK<float>(rows(43), {.top_k = 2}, random_vector<float>(6, 44)),
                                        LinearTopK<float>(random_rows<float>(3, 40, 45), {.top_k = 2, .scale = 2})}),
                 {.modality = modality}},
      RouterCase{BaseLayersRouter<float>(rows(15))},
      RouterCase{QuantileBalanced<float>(rows(16), {.choice = {.top_k = 2}})},
      RouterCase{ExpertChoice<float>(rows(17))},
      RouterCase{Sinkhorn<float>(rows(18), {.top_k = 2})},
      RouterCase{TokenHash<float>(rows(19), {.top_k = 2}, table), {.token_ids = ids}},
      RouterCase{TokenHash<float>(40, 6, table), {.token_ids = ids}},
      RouterCase{RandomRouter<float>(40, 6, 2, 21)},
      RouterCase{LoraRouter<float>(renormalizing_router(25), random_adapter(), /*dropout=*/0.2), {.seed = 31}},
      RouterCase{WithSecondExpert(renormalizing_router(22), {}), {.seed = 23}},
      RouterCase{Replay(LinearTopK<float>(rows(24), {.top_k = 2}))},
      RouterCase{Replay(LinearTopK<float>(rows(24), {.top_k = 2}), {.weights = ReplayedWeights::anew}),
                 {.recorded = &recorded}},
      RouterCase{LinearTopK<float>(rows(34),
                                   {.top_k = 1, .score = Score::sigmoid, .renormalize = true, .always_chosen = 2}, {},
                                   random_vector<float>(4, 35))},
      RouterCase{Replay(LinearTopK<float>(rows(36), {.top_k = 1, .renormalize = true, .always_chosen = 1}),
                        {.weights = ReplayedWeights::anew}),
                 {.recorded = &recorded}},
      RouterCase{WithCapacity(renormalizing_router(32), {.capacity = fixed_capacity(9)})},
      RouterCase{WithCapacity(renormalizing_router(32), {.capacity = fixed_capacity(9), .renormalize = true})},
      RouterCase{WithMergedExperts(renormalizing_router(46), {1, 0, 1, 2, 3, 0})},
      RouterCase{LogitsRouter(cosine_logits(), SinkhornChoice<float>(6, {.top_k = 2}))},
      RouterCase{LogitsRouter(ShapedLogits(cosine_logits(), {.soft_cap = 2}), TopPChoice<float>({}))},
      RouterCase{
          LogitsRouter(ShapedLogits(LoraLogits<float>(LinearLogits<float>(rows(33)), random_adapter(), /*dropout=*/0.2),
                                    {.soft_cap = 2}),
                       TopKChoice<float>(6, {.top_k = 2})),
          {.seed = 31}},
      RouterCase{LogitsRouter(NormedLogits<float>(rows(10), random_vector<float>(40, 11)), ChoiceByExperts<float>())},
      RouterCase{LogitsRouter(NoisyLogits<float>(rows(1), rows(2)), TopPChoice<float>({})), {.seed = 3}},
      RouterCase{LogitsRouter(LoraLogits<float>(LinearLogits<float>(rows(33)), random_adapter()),
                              HashTableChoice<float>(6, {.top_k = 2}, table)),
                 {.token_ids = ids}},
  };
}

/// f(router, its side inputs) for every one of them.
template <class F>
void for_each_router(const F& f) {
  std::apply([&](const auto&... cases) { (f(cases.router, cases.side), ...); }, all_routers());
}

}  // namespace moe::test
