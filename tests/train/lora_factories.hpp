/// @file  Parts with adapters, as after some training.
#pragma once

#include <utility>
#include <vector>

#include "moe/moe.hpp"
#include "moe/train.hpp"
#include "random.hpp"

namespace moe::test {

inline const std::vector<Index> mixed_ranks{0, 1, 3, 8};

template <class Scalar>
LinearTopK<Scalar> router_of(Index experts, Index d_model, unsigned seed, WeightOn weight_on = WeightOn::output) {
  return LinearTopK<Scalar>(moe::random_weight<Scalar>(experts, d_model, seed),
                            {.top_k = 2, .renormalize = true, .weight_on = weight_on});
}

/// B is not 0.
template <class Layer>
Layer with_random_adapters(Layer layer, unsigned seed) {
  for (const auto& parameter : parameters(layer)) {
    parameter.matrix() = random_matrix<Weight<typename Layer::Scalar>>(parameter.rows, parameter.cols, seed++, 0.3);
  }
  return layer;
}

template <class W, class Act = SwiGlu>
auto bank_with_lora(Index experts, Index d_model, Index d_ff, const LoraBankOptions& options, unsigned seed) {
  return with_random_adapters(with_lora(moe::random_bank<W, Act>(experts, d_model, d_ff, seed), options), seed + 1);
}

}  // namespace moe::test
