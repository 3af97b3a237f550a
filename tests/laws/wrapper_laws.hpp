/// @file  What whatever is wrapped around parts of a layer must pass on: seed, mode, numerics, adapters, parameters,
/// routes; and padding, which none of them meets.
#pragma once

#include "allocations.hpp"  // before Eigen

#include <utility>
#include <vector>

#include "moe/core/types.hpp"
#include "moe/layers/any_layer.hpp"
#include "moe/lora/merged.hpp"
#include "moe/lora/named_adapters.hpp"
#include "moe/train/trainable_layer.hpp"
#include "random.hpp"

namespace moe::laws {

/// One layer, in the ways that it is used. Its adapters have dropout and add something.
struct Wrapped {
  AnyLayer<double> used, merged;
  TrainableLayer<double> learning, another;  // alike
  std::vector<NamedAdapter<double>> left;    // adapters of merged()
  bool tokens_see_each_other, has_routes;
};

/// The laws by themselves, compiled once for all wrappers.
void expect_to_pass_everything_on(Wrapped layer);

struct WrapperSays {
  bool tokens_see_each_other = false, has_routes = true;
};

template <class Layer>
void expect_to_pass_everything_on(Layer layer, const WrapperSays& says = {}) {
  unsigned seed = 70;
  for (const auto& [matrix, adapter, whose] : named_adapters("", layer)) {
    adapter->b = test::random_matrix<Weight<double>>(adapter->out(), adapter->rank(), ++seed);
  }
  auto without = merged(layer);
  auto left = named_adapters("", without);
  expect_to_pass_everything_on(Wrapped{AnyLayer<double>::with_parameters(layer), without, TrainableLayer<double>(layer),
                                       TrainableLayer<double>(layer), std::move(left), says.tokens_see_each_other,
                                       says.has_routes});
}

}  // namespace moe::laws
