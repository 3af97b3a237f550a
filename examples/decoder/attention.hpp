/// @file  Causal attention whose heads share keys and values.
#pragma once

#include <moe/moe.hpp>

#include <algorithm>
#include <cmath>
#include <optional>

#include "linear.hpp"
#include "rms_norm.hpp"
#include "rope.hpp"

namespace decoder {

/// Keys and values of all tokens so far, (kv_heads · head_dim) a column, so that none is computed twice.
struct KvCache {
  moe::Matrix<float> keys, values;  // with room for more columns than are in use
  Index length = 0;                 // of the text so far, in tokens

  void append(const moe::Matrix<float>& key, const moe::Matrix<float>& value) {
    if (const Index needed = length + key.cols(); needed > keys.cols()) {
      keys.conservativeResize(key.rows(), std::max(needed, 2 * keys.cols()));
      values.conservativeResize(value.rows(), keys.cols());
    }
    keys.middleCols(length, key.cols()) = key;
    values.middleCols(length, value.cols()) = value;
    length += key.cols();
  }
};

/// output(Σ_s softmax_s(q_t·k_s / √head_dim) · v_s) over all s that t sees, for each head. Vaswani et al. 2017,
/// arXiv:1706.03762; groups of heads with one key and value: Ainslie et al. 2023, "GQA", arXiv:2305.13245.
struct Attention {
  Linear query, key, value, output;
  std::optional<RmsNorm> query_norm, key_norm;  // of each head
  Rope rope;
  Index head_dim, window;

  /// Of n tokens that follow those in the cache, which then has them, too.  x, result (d_model × n)
  moe::Matrix<float> operator()(const moe::Matrix<float>& x, KvCache& cache, moe::ExecutorRef executor) const {
    const Index first = cache.length, num_heads = query.weight.rows() / head_dim;
    moe::Matrix<float> q = query(x, executor), k = key(x, executor);
    place(q, query_norm, first);
    place(k, key_norm, first);
    cache.append(k, value(x, executor));

    moe::Matrix<float> mixed(q.rows(), q.cols());
    const Index heads_of_a_key = q.rows() / k.rows();
    executor.for_each(num_heads, moe::Task([&](Index h, Index) {
                        const Index kv = h / heads_of_a_key * head_dim;
                        const auto keys = cache.keys.block(kv, 0, head_dim, cache.length);
                        const auto values = cache.values.block(kv, 0, head_dim, cache.length);
                        moe::Matrix<float> weight =
                            keys.transpose() * q.middleRows(h * head_dim, head_dim);  // (seen × n)
                        weight /= std::sqrt(float(head_dim));
                        for (Index t = 0; t < x.cols(); ++t) {
                          const Index last = first + t, begin = window == 0 ? 0 : std::max<Index>(0, last + 1 - window);
                          auto seen = weight.col(t).segment(begin, last + 1 - begin);
                          moe::softmax(seen, seen);
                          weight.col(t).head(begin).setZero();
                          weight.col(t).tail(cache.length - last - 1).setZero();
                        }
                        mixed.middleRows(h * head_dim, head_dim).noalias() = values * weight;
                      }));
    return output(mixed, executor);
  }

 private:
  /// Norms the heads of each token, and turns them to its position.
  void place(moe::Matrix<float>& x, const std::optional<RmsNorm>& norm, Index first) const {
    const Index heads = x.rows() / head_dim;
    Eigen::Map<moe::Matrix<float>> each(x.data(), head_dim, heads * x.cols());
    if (norm) norm->in_place(each);
    rope.turn(each, heads, first);
  }
};

}  // namespace decoder
