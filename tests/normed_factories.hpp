/// @file  Groups of experts whose answers are normalised, drawn at random.
#pragma once

#include <span>
#include <utility>

#include "moe/experts/normed_experts.hpp"
#include "random.hpp"

namespace moe::test {

template <class G>
auto random_normed(G experts, unsigned seed, const RmsNormOptions& options) {
  using Scalar = typename G::Scalar;
  auto gain = random_matrix<Vector<Scalar>>(experts.d_model(), 1, seed);
  return NormedExperts(std::move(experts), RmsNorm<Scalar>(std::move(gain), options));
}

/// Groups of any kind. The epsilon keeps small answers from growing, and with them their rounding.
template <class Groups, GainOn gain_on = GainOn::output>
struct NormedGroups {
  static auto make(Index d_model, std::span<const unsigned> seeds) {
    return random_normed(Groups::make(d_model, seeds), 8, {.epsilon = 0.1, .offset = 1, .gain_on = gain_on});
  }
};

}  // namespace moe::test
