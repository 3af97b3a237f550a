/// @file  Causal attention whose heads share keys and values.
#pragma once

#include <moe/moe.hpp>

#include <algorithm>
#include <cmath>
#include <optional>

namespace decoder {

using moe::Index;

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

/// Tells heads where their tokens stand: turns each pair (x_i, x_{i + d/2}) of a head of d numbers by the angle
/// position · θ^(−2i/d), so that the product of a query and a key depends on their distance alone. Su et al. 2021,
/// "RoFormer", arXiv:2104.09864, §3.2.2; pairs are those of GPT-NeoX.
class Rope {
 public:
  Rope(Index head_dim, double theta) : frequency_(head_dim / 2) {
    for (Index i = 0; i < head_dim / 2; ++i) {
      frequency_(i) = 1 / std::pow(float(theta), float(2 * i) / float(head_dim));
    }
  }

  /// @param heads  (head_dim × heads · n_tokens), those of a token side by side
  /// @param first  position of the first token
  void turn(Eigen::Ref<moe::Matrix<float>> heads, Index heads_of_token, Index first) const {
    const Index half = frequency_.size();
    for (Index h = 0; h < heads.cols(); h += heads_of_token) {
      const Eigen::ArrayXf angle = float(first + h / heads_of_token) * frequency_;
      const Eigen::ArrayXf cosine = angle.cos(), sine = angle.sin();
      for (auto head : heads.middleCols(h, heads_of_token).colwise()) {
        const Eigen::ArrayXf a = head.head(half), b = head.tail(half);
        head.head(half) = a * cosine - b * sine;
        head.tail(half) = b * cosine + a * sine;
      }
    }
  }

 private:
  Eigen::ArrayXf frequency_;  // radians a position
};

/// output(Σ_s softmax_s(q_t·k_s / √head_dim) · v_s) over all s that t sees, for each head. Vaswani et al. 2017,
/// arXiv:1706.03762; groups of heads with one key and value: Ainslie et al. 2023, "GQA", arXiv:2305.13245.
struct Attention {
  moe::Projection<float> query, key, value, output;
  std::optional<moe::RmsNorm<float>> query_norm, key_norm;  // of each head
  Rope rope;
  Index head_dim, window;

  /// Of n tokens that follow those in the cache, which then has them, too.  x, result (d_model × n)
  moe::Matrix<float> operator()(const moe::Matrix<float>& x, KvCache& cache, moe::Workers& workers) const {
    const Index first = cache.length;
    moe::Matrix<float> q = project(query, x, workers), k = project(key, x, workers), mixed(q.rows(), q.cols());
    place(q, query_norm, first, workers);
    place(k, key_norm, first, workers);
    cache.append(k, project(value, x, workers));
    const Index heads_of_a_key = q.rows() / k.rows();
    workers.for_each(q.rows() / head_dim, [&](Index h, moe::Scratch&) {
      const Index kv = h / heads_of_a_key * head_dim;
      moe::Matrix<float> weight = cache.keys.block(kv, 0, head_dim, cache.length).transpose() *
                                  q.middleRows(h * head_dim, head_dim) / std::sqrt(float(head_dim));  // (seen × n)
      for (Index t = 0; t < x.cols(); ++t) {
        const Index last = first + t, begin = window == 0 ? 0 : std::max<Index>(0, last + 1 - window);
        auto seen = weight.col(t).segment(begin, last + 1 - begin);
        moe::softmax(seen, seen);
        weight.col(t).head(begin).setZero();
        weight.col(t).tail(cache.length - last - 1).setZero();
      }
      mixed.middleRows(h * head_dim, head_dim).noalias() = cache.values.block(kv, 0, head_dim, cache.length) * weight;
    });
    return project(output, mixed, workers);
  }

 private:
  static moe::Matrix<float> project(const moe::Projection<float>& projection, const moe::Matrix<float>& x,
                                    moe::Workers& workers) {
    moe::Matrix<float> y(projection.out(), x.cols());
    projection.compute(x, y, workers);
    return y;
  }

  /// Norms the heads of each token, and turns them to its position.
  void place(moe::Matrix<float>& x, const std::optional<moe::RmsNorm<float>>& norm, Index first,
             moe::Workers& workers) const {
    const Index heads = x.rows() / head_dim;
    Eigen::Map<moe::Matrix<float>> each(x.data(), head_dim, heads * x.cols());
    if (norm) norm->apply(each, each, workers);
    rope.turn(each, heads, first);
  }
};

}  // namespace decoder
