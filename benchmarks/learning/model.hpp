/// @file  Makes the models that are compared.
#pragma once

#include <cmath>
#include <cstdint>
#include <utility>
#include <vector>

#include "learning/context_model.hpp"
#include "learning/kind.hpp"
#include "learning/options.hpp"
#include "moe/moe.hpp"
#include "moe/surgery.hpp"
#include "moe/train.hpp"

namespace moe::bench {

/// A sparse block whose experts are copies of a dense one, which has learnt, cut into as many as a token meets.
inline TrainableLayer<float> upcycled(const TrainableLayer<float>& dense, const Kind& kind, const LearnOptions& o,
                                      std::uint64_t seed) {
  auto bank = random_bank<float>(1, o.shape.d_model, o.active, seed);
  const auto into = parameters(bank);
  for (std::size_t i = 0; i < into.size(); ++i) into[i].array() = dense.parameters()[i].array();
  return TrainableLayer<float>(
      upcycle(bank, {.copies = kind.experts / kind.top_k, .active_copies = 1, .shards = kind.top_k, .seed = seed}));
}

inline TrainableLayer<float> make_block(const Kind& kind, const LearnOptions& o, std::uint64_t seed) {
  const Index d = o.shape.d_model, units = kind.units(o.active);
  if (kind.is_dense()) {
    return TrainableLayer<float>(DenseLayer(random_bank<float>(1, d, kind.width * o.active, seed)));
  }
  const Recipe& r = o.recipe;
  MoeLayer routed(LinearTopK<float>(random_weight<float>(kind.experts, d, seed + 7),
                                    {.top_k = kind.top_k,
                                     .score = r.sigmoid ? Score::sigmoid : Score::softmax,
                                     .renormalize = r.renormalize && kind.top_k > 1,
                                     .scale = r.combine_scale},
                                    /*bias=*/{}, r.bias_rate > 0 ? Vector<float>::Zero(kind.experts) : Vector<float>()),
                  random_bank<float>(kind.experts, d, units, seed));
  for (const auto& matrix : parameters(routed)) {
    matrix.array() *= float(matrix.name.starts_with("gate.") ? r.router_scale : r.expert_scale);
  }
  if (kind.shared == 0) return TrainableLayer<float>(std::move(routed));
  return TrainableLayer<float>(
      WithSharedExpert(std::move(routed), random_bank<float>(1, d, kind.shared * units, seed + 5)));
}

/// Matrices begin with the deviation of PyTorch's Linear, as those around them.
inline ContextModel make_model(const Kind& kind, const LearnOptions& o, std::uint64_t seed) {
  std::vector<TrainableLayer<float>> blocks;
  for (Index b = 0; b < o.blocks; ++b) {
    blocks.push_back(
        make_block(b < o.dense_blocks ? parse_kind("dense") : kind, o, 100 * seed + 10 * std::uint64_t(b)));
    for (const auto& matrix : blocks.back().parameters()) matrix.array() /= std::sqrt(3.0f);
  }
  return {o.shape, std::move(blocks), seed};
}

/// Multiplications count as two operations, backward as two forward passes.
inline double flops_a_step(const Kind& kind, const LearnOptions& o) {
  const auto d = double(o.shape.d_model);
  const double ffns = double(o.blocks) * 3 * d * double(o.active * kind.width);
  const double routers = kind.is_dense() ? 0 : double(o.blocks - o.dense_blocks) * d * double(kind.experts);
  const double around = d * double(o.shape.context * o.shape.embedding) + 256 * d;
  return 6 * double(o.batch) * (ffns + routers + around);
}

}  // namespace moe::bench
