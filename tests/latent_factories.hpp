/// @file  Groups of experts between two projections, drawn at random.
#pragma once

#include <cmath>
#include <optional>
#include <span>
#include <utility>

#include "expert_factories.hpp"
#include "moe/experts/latent_experts.hpp"
#include "random.hpp"

namespace moe::test {

/// Narrower than d_model, but for the smallest.
inline Index latent_size(Index d_model) { return d_model / 2 + 1; }

template <class W>
Projection<W> random_projection(Index out, Index in, unsigned seed, bool bias = false) {
  Random random(seed);
  auto weight = random_weight<W>(random, out, in);
  return Projection<W>(weight, random.matrix<Vector<ActivationScalar<W>>>(bias ? out : 0, 1));
}

template <class W, class G, class Scalar = typename G::Scalar>
auto random_latent(Index d_model, G experts, unsigned seed, bool biases = false,
                   std::optional<RmsNormOptions> norm = {}, std::optional<RmsNormOptions> norm_of_answers = {}) {
  const Index latent = experts.d_model();
  std::optional<RmsNorm<Scalar>> its_norm, other_norm;
  if (norm) its_norm.emplace(random_matrix<Vector<Scalar>>(latent, 1, seed + 2), *norm);
  if (norm_of_answers) other_norm.emplace(random_matrix<Vector<Scalar>>(latent, 1, seed + 3), *norm_of_answers);
  return LatentExperts(random_projection<W>(latent, d_model, seed, biases), std::move(experts),
                       random_projection<W>(d_model, latent, seed + 1, biases), std::move(its_norm), {},
                       std::move(other_norm));
}

/// Groups of any kind, in between. Biases and a norm would make experts that weights on the input do not see as the
/// laws say.
template <class W, class Groups>
struct LatentGroups {
  static auto make(Index d_model, std::span<const unsigned> seeds) {
    return random_latent<W>(d_model, Groups::make(latent_size(d_model), seeds), 7);
  }
};

}  // namespace moe::test
