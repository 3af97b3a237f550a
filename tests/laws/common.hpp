/// @file  What all law suites use.
#pragma once

#include "allocations.hpp"

#include <numeric>
#include <vector>

#include <gtest/gtest.h>

#include "compare.hpp"
#include "moe/core/routing.hpp"
#include "moe/core/types.hpp"
#include "moe/routers/linear_top_k.hpp"
#include "random.hpp"

namespace moe::laws {

using test::is_close;
using test::Random;
using test::random_matrix;
using test::same_bits;

template <class Factory>
inline constexpr bool may_allocate = requires { requires Factory::may_allocate; };

/// first, first + 1, …
inline std::vector<unsigned> seeds_from(unsigned first, Index count) {
  std::vector<unsigned> seeds(static_cast<std::size_t>(count));
  std::iota(seeds.begin(), seeds.end(), first);
  return seeds;
}

/// Softmax over all experts, renormalised: Mixtral's.
template <class Scalar>
LinearTopK<Scalar> router_for(Index d_model, Index num_experts, Index top_k, WeightOn weight_on = WeightOn::output) {
  return LinearTopK<Scalar>(random_matrix<Weight<Scalar>>(num_experts, d_model, 7),
                            {.top_k = top_k, .renormalize = true, .weight_on = weight_on});
}

/// Below, at and above the width of every register.
inline constexpr Index sizes[] = {1, 3, 4, 5, 7, 8, 9, 15, 16, 17, 33};
/// Few tokens are read in place, many are packed.
inline constexpr Index token_counts[] = {0, 1, 7, 15, 16, 17, 64};

}  // namespace moe::laws
