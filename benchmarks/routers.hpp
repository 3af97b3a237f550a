/// @file  Every router of the library by name, with random weights.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "moe/core/tokens.hpp"
#include "moe/models/random.hpp"
#include "moe/routers/any_router.hpp"
#include "moe/routers/base_layers.hpp"
#include "moe/routers/carried_top_k.hpp"
#include "moe/routers/cosine_top_k.hpp"
#include "moe/routers/expert_choice.hpp"
#include "moe/routers/filters/capacity.hpp"
#include "moe/routers/filters/replay.hpp"
#include "moe/routers/filters/second_expert.hpp"
#include "moe/routers/linear_top_k.hpp"
#include "moe/routers/noisy_top_k.hpp"
#include "moe/routers/normed_top_k.hpp"
#include "moe/routers/quantile_balancing.hpp"
#include "moe/routers/random_router.hpp"
#include "moe/routers/relu_router.hpp"
#include "moe/routers/sinkhorn.hpp"
#include "moe/routers/sparse_mixer.hpp"
#include "moe/routers/token_hash.hpp"
#include "moe/routers/top_p.hpp"

namespace moe::bench {

/// The sizes of a router.
struct RouterShape {
  Index d_model = 0;
  Index num_experts = 0;
  Index top_k = 0;
};

struct NamedRouter {
  std::string name;
  AnyRouter<float> (*make)(const RouterShape&);
};

namespace detail {

inline constexpr Index vocabulary = 50000, d_projected = 256;  // 256: Chi et al. 2022, §4.1

inline Weight<float> weight(const RouterShape& shape) {
  return moe::random_weight<float>(shape.num_experts, shape.d_model, /*seed=*/7);
}
inline Eigen::VectorXf numbers(Index size, std::uint64_t seed) {
  return 0.1F * moe::random_tokens<float>(size, 1, seed);
}

inline LinearTopK<float> linear(const RouterShape& shape, TopKOptions options, bool biased = false) {
  options.top_k = shape.top_k;
  return {weight(shape), options, {}, biased ? numbers(shape.num_experts, 8) : Eigen::VectorXf()};
}

/// As DeepSeek-V3, whose groups hold two or more experts each.
inline TopKOptions grouped(const RouterShape& shape) {
  const Index groups = shape.num_experts >= 16 ? 8 : 4;
  return {
      .score = Score::sigmoid, .renormalize = true, .num_groups = groups, .kept_groups = groups / 2, .group_top = 2};
}

}  // namespace detail

/// In the order of docs/routers.md.
inline std::vector<NamedRouter> all_routers() {
  using S = const RouterShape&;
  using namespace detail;
  return {
      {"softmax", [](S s) -> AnyRouter<float> { return linear(s, {}); }},
      {"softmax_renormalized", [](S s) -> AnyRouter<float> { return linear(s, {.renormalize = true}); }},
      {"softmax_of_chosen", [](S s) -> AnyRouter<float> { return linear(s, {.score = Score::softmax_of_chosen}); }},
      {"softmax_norm2", [](S s) -> AnyRouter<float> { return linear(s, {.renormalize = true, .norm = 2}); }},
      {"sigmoid_biased", [](S s) -> AnyRouter<float> { return linear(s, {.score = Score::sigmoid}, true); }},
      {"sigmoid_grouped", [](S s) -> AnyRouter<float> { return linear(s, grouped(s), true); }},
      {"sqrt_softplus", [](S s) -> AnyRouter<float> { return linear(s, {.score = Score::sqrt_softplus}, true); }},
      {"token_hash",
       [](S s) -> AnyRouter<float> {
         return TokenHash<float>(weight(s), {.top_k = s.top_k, .score = Score::sqrt_softplus},
                                 random_hash_table(vocabulary, s.num_experts, s.top_k, 1));
       }},
      {"normed",
       [](S s) -> AnyRouter<float> {
         return NormedTopK<float>(weight(s), numbers(s.d_model, 1), numbers(s.num_experts, 2),
                                  {.top_k = s.top_k, .score = Score::softmax_of_chosen});
       }},
      {"noisy",
       [](S s) -> AnyRouter<float> {
         return NoisyTopK<float>(weight(s), moe::random_weight<float>(s.num_experts, s.d_model, 9), {.top_k = s.top_k});
       }},
      {"vmoe",
       [](S s) -> AnyRouter<float> {
         return WithCapacity(NoisyTopK<float>(weight(s), {}, {.top_k = s.top_k}, 1.0 / double(s.num_experts)),
                             {.capacity = capacity_factor(1.05, s.top_k), .priority = Priority::batch});
       }},
      {"sparse_mixer",
       [](S s) -> AnyRouter<float> { return SparseMixer<float>(weight(s), {.top_k = std::min<Index>(2, s.top_k)}); }},
      {"expert_choice",
       [](S s) -> AnyRouter<float> {
         return ExpertChoice<float>(weight(s), {.capacity = capacity_factor(1, s.top_k)});
       }},
      {"carried",
       [](S s) -> AnyRouter<float> {
         return CarriedTopK<float>(weight(s), moe::random_weight<float>(s.num_experts, s.num_experts, 3),
                                   {.top_k = s.top_k});
       }},
      {"sinkhorn", [](S s) -> AnyRouter<float> { return Sinkhorn<float>(weight(s), {.top_k = s.top_k}); }},
      {"base", [](S s) -> AnyRouter<float> { return BaseLayersRouter<float>(weight(s), {.residual = false}); }},
      {"quantile",
       [](S s) -> AnyRouter<float> { return QuantileBalanced<float>(weight(s), {.choice = {.top_k = s.top_k}}); }},
      {"cosine",
       [](S s) -> AnyRouter<float> {
         return CosineTopK<float>(moe::random_weight<float>(d_projected, s.d_model, 4),
                                  moe::random_weight<float>(s.num_experts, d_projected, 5), {.top_k = s.top_k}, 2.0);
       }},
      {"top_p", [](S s) -> AnyRouter<float> { return TopP<float>(weight(s), {}); }},
      {"relu", [](S s) -> AnyRouter<float> { return ReluRouter<float>(weight(s)); }},
      {"second_expert",
       [](S s) -> AnyRouter<float> {
         return WithSecondExpert(linear({s.d_model, s.num_experts, std::min<Index>(2, s.top_k)}, {.renormalize = true}),
                                 SecondExpertOptions{});
       }},
      {"capacity",
       [](S s) -> AnyRouter<float> {
         return WithCapacity(linear(s, {.renormalize = true}), {.capacity = capacity_factor(1.25, s.top_k)});
       }},
      {"replay", [](S s) -> AnyRouter<float> { return Replay(linear(s, {})); }},
      {"random", [](S s) -> AnyRouter<float> { return RandomRouter<float>(s.d_model, s.num_experts, s.top_k, 1); }},
  };
}

/// What routers may be told of a batch, all of it.
struct SideData {
  std::vector<Index> token_ids;
  std::vector<float> previous_logits;

  SideData(Index num_experts, Index num_tokens) {
    for (Index t = 0; t < num_tokens; ++t) token_ids.push_back((t * 7919) % detail::vocabulary);
    const auto logits = moe::random_tokens<float>(num_experts, num_tokens, 11);
    previous_logits.assign(logits.data(), logits.data() + logits.size());
  }

  SideInputs<float> inputs() const { return {.token_ids = token_ids, .seed = 5, .previous_logits = previous_logits}; }
};

}  // namespace moe::bench
