/// @file  Tells heads of attention where their tokens stand, by turning them.
#pragma once

#include <moe/core/types.hpp>

#include <cmath>

namespace decoder {

using moe::Index;

/// Turns each pair (x_i, x_{i + d/2}) of a head of d numbers by the angle position · θ^(−2i/d), so that the product of
/// a query and a key depends on their distance alone. Su et al. 2021, "RoFormer", arXiv:2104.09864, §3.2.2; pairs are
/// those of GPT-NeoX.
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

}  // namespace decoder
