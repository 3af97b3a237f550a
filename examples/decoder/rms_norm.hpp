/// @file  Brings each column to one size.
#pragma once

#include <moe/core/types.hpp>

#include <cmath>

namespace decoder {

/// x / √(mean(x²) + ε) ⊙ gain, each column by itself. Zhang & Sennrich 2019, arXiv:1910.07467.
struct RmsNorm {
  moe::Vector<float> gain;
  float epsilon;

  moe::Matrix<float> operator()(moe::Matrix<float> x) const {
    in_place(x);
    return x;
  }

  void in_place(Eigen::Ref<moe::Matrix<float>> x) const {
    for (auto column : x.colwise()) {
      const float size = std::sqrt(column.squaredNorm() / float(x.rows()) + epsilon);
      column = column.cwiseProduct(gain) / size;
    }
  }
};

}  // namespace decoder
