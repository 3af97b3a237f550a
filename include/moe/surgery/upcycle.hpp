/// @file  From a dense FFN to a sparse layer that computes the same, and can learn to compute more.
#pragma once

#include <cmath>
#include <cstdint>
#include <string>
#include <utility>

#include "moe/core/check.hpp"
#include "moe/core/quantized.hpp"
#include "moe/core/types.hpp"
#include "moe/core/weight_stack.hpp"
#include "moe/experts/ffn_bank.hpp"
#include "moe/layers/moe_layer.hpp"
#include "moe/models/random.hpp"
#include "moe/routers/linear_top_k.hpp"

namespace moe::inline MOE_TARGET {

/// What upcycle() makes of a dense FFN.
struct UpcycleOptions {
  Index copies = 8;         // of the dense FFN
  Index active_copies = 2;  // that a token meets; of 1 in one shard the weight is 1, and y teaches the router nothing
  Index shards = 1;         // experts that each copy is cut into: finer experts, as many more of them active
  double noise = 0;         // added to each copy's weights, as a share of their root mean square
  std::uint64_t seed = 1;   // of the router, and of the noise
};

namespace detail {

/// weight plus noise, as a share of its root mean square.
template <class Scalar>
Weight<Scalar> with_noise(const WeightMap<Scalar>& weight, double noise, std::uint64_t seed) {
  if (noise == 0) return weight;
  const auto rms = std::sqrt(weight.squaredNorm() / Scalar(weight.size()));
  const Matrix<Scalar> random = random_tokens<Scalar>(weight.rows(), weight.cols(), seed);
  const auto random_rms = std::sqrt(random.squaredNorm() / Scalar(random.size()));
  return weight + random * (Scalar(noise) * rms / random_rms);
}

}  // namespace detail

/// A sparse layer whose experts are copies of a dense FFN, cut into `shards` of hidden units each. Right after, without
/// noise, it computes what the dense FFN does, to rounding: the shards of a copy have the same row in the router, so
/// that they are chosen together, and W_down is multiplied by their number, as each gets that part of the copy's
/// weight.
///
/// Komatsuzaki et al. 2023, "Sparse Upcycling", arXiv:2212.05055; shards and their scaling: He et al. 2024, "Upcycling
/// Large Language Models into Mixture of Experts", arXiv:2410.07524.
/// @param dense  a bank of one expert
/// @throws std::invalid_argument if there is more than one expert, if shards does not divide d_ff, or unless 1 ≤
/// active_copies ≤ copies.
template <class Scalar, class Act>
auto upcycle(const FfnBank<Scalar, Act>& dense, const UpcycleOptions& options = {}) {
  static_assert(are_written_in_place<Scalar>());
  require_equal(dense.num_experts(), 1, "upcycle: dense.num_experts()");
  require_between(1, options.active_copies, options.copies, "upcycle: active_copies");
  require_between(1, options.shards, dense.d_ff(), "upcycle: shards");
  require(dense.d_ff() % options.shards == 0, "upcycle: shards " + std::to_string(options.shards) +
                                                  " does not divide d_ff " + std::to_string(dense.d_ff()));
  const Index d = dense.d_model(), shards = options.shards, ff = dense.d_ff() / shards, n = options.copies * shards;
  const Weight<Scalar> rows = random_weight<Scalar>(options.copies, d, options.seed);
  Weight<Scalar> router(n, d);
  constexpr bool is_gated = FfnBank<Scalar, Act>::is_gated;
  WeightStack<Scalar> gate(is_gated ? n : 0, ff, d), up(n, ff, d), down(n, d, ff);
  const auto& its = dense.biases();
  FfnBiases<Scalar> biases;
  if (its.gate.size() > 0) biases.gate.resize(ff, n);
  if (its.up.size() > 0) biases.up.resize(ff, n);
  if (its.down.size() > 0) biases.down = its.down.replicate(1, n);

  for (Index copy = 0; copy < options.copies; ++copy) {
    const std::uint64_t seed = options.seed + 3 * std::uint64_t(copy) + 1;
    const auto w_gate = detail::with_noise<Scalar>(dense.w_gate()[0], options.noise, seed);  // empty, if there is none
    const auto w_up = detail::with_noise<Scalar>(dense.w_up()[0], options.noise, seed + 1);
    const auto w_down = detail::with_noise<Scalar>(dense.w_down()[0], options.noise, seed + 2);
    for (Index s = 0; s < shards; ++s) {
      const Index e = copy * shards + s;
      router.row(e) = rows.row(copy);
      if constexpr (is_gated) gate.owned(e) = w_gate.middleRows(s * ff, ff);
      up.owned(e) = w_up.middleRows(s * ff, ff);
      down.owned(e) = w_down.middleCols(s * ff, ff) * Scalar(shards);
      if (its.gate.size() > 0) biases.gate.col(e) = its.gate.col(0).segment(s * ff, ff);
      if (its.up.size() > 0) biases.up.col(e) = its.up.col(0).segment(s * ff, ff);
    }
  }
  return MoeLayer(
      LinearTopK<Scalar>(std::move(router), {.top_k = options.active_copies * shards, .renormalize = true}),
      FfnBank<Scalar, Act>::of(std::move(gate), std::move(up), std::move(down), dense.activation(), std::move(biases)));
}

}  // namespace moe::inline MOE_TARGET
