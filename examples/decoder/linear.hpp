/// @file  y = W·x + b, rows split over the threads.
#pragma once

#include <moe/moe.hpp>

#include <algorithm>

namespace decoder {

using moe::Index;

/// @param w  (outputs × inputs)
/// @param x  (inputs × n_tokens)
inline moe::Matrix<float> multiply(const moe::Weight<float>& w, const moe::Matrix<float>& x,
                                   moe::ExecutorRef executor) {
  constexpr Index band = 128;  // fixed, so that sums have one order, whatever the number of threads
  moe::Matrix<float> y(w.rows(), x.cols());
  executor.for_each((w.rows() + band - 1) / band, moe::Task([&](Index i, Index) {
                      const Index first = i * band, rows = std::min(band, w.rows() - first);
                      y.middleRows(first, rows).noalias() = w.middleRows(first, rows) * x;
                    }));
  return y;
}

struct Linear {
  moe::Weight<float> weight;  // (outputs × inputs)
  moe::Vector<float> bias;    // (outputs), or empty

  moe::Matrix<float> operator()(const moe::Matrix<float>& x, moe::ExecutorRef executor) const {
    moe::Matrix<float> y = multiply(weight, x, executor);
    if (bias.size() > 0) y.colwise() += bias;
    return y;
  }
};

}  // namespace decoder
