/// @file  What a layer has to do, whoever does it.
#pragma once

#include <algorithm>

#include "limits.hpp"
#include "moe/core/types.hpp"

namespace moe::bench {

/// Operations (a multiply-add is two), and bytes of weights that must come from memory. Tokens are not counted: they
/// stay in cache.
struct Work {
  double flops = 0;
  double bytes = 0;

  friend Work operator+(const Work& a, const Work& b) { return {a.flops + b.flops, a.bytes + b.bytes}; }
  friend Work operator*(double times, const Work& a) { return {times * a.flops, times * a.bytes}; }
};

/// `matrices_used` of `weights` numbers each are read once; `products` matrix-vector products are made with them.
inline Work products_work(double weights, double bytes_a_weight, Index matrices_used, Index products) {
  return {.flops = 2 * weights * double(products), .bytes = weights * bytes_a_weight * double(matrices_used)};
}

/// Gated FFNs of width d_ff: `used` of them see `products` tokens altogether.
inline Work gated_ffn_work(Index d_model, Index d_ff, double bytes_a_weight, Index used, Index products) {
  return products_work(3 * double(d_model) * double(d_ff), bytes_a_weight, used, products);
}

/// The least time it takes: the larger of arithmetic alone and reading alone.
inline double limit_seconds(const Work& work, const Limits& limits) {
  return std::max(work.flops / (1e9 * limits.fma_gflops), work.bytes / (1e9 * limits.read_gbs));
}

}  // namespace moe::bench
