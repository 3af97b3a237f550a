/// @file  Random numbers that are the same on every machine.
#pragma once

#include <random>

#include "moe/core/types.hpp"

namespace moe::test {

/// std::mt19937 is specified to the bit; the distributions of the standard library are not.
class Random {
 public:
  explicit Random(unsigned seed) : bits_(seed) {}

  /// Uniform in [−1, 1).
  double operator()() { return static_cast<double>(bits_()) * 0x1p-31 - 1; }

  /// 0 … n − 1.
  Index below(Index n) { return static_cast<Index>(bits_() % static_cast<std::mt19937::result_type>(n)); }

  /// Uniform in [−scale, scale).
  template <class M>
  M matrix(Index rows, Index cols, double scale = 1) {
    M m(rows, cols);
    for (Index c = 0; c < cols; ++c) {
      for (Index r = 0; r < rows; ++r) m(r, c) = static_cast<typename M::Scalar>(scale * (*this)());
    }
    return m;
  }

 private:
  std::mt19937 bits_;
};

/// The same, where one matrix is all that is needed.
template <class M>
M random_matrix(Index rows, Index cols, unsigned seed, double scale = 1) {
  return Random(seed).matrix<M>(rows, cols, scale);
}

}  // namespace moe::test
