/// @file  Keeps a step from being too large.
#pragma once

#include <array>
#include <cmath>
#include <cstddef>
#include <numeric>
#include <string>
#include <vector>

#include "moe/check.hpp"
#include "moe/executors/serial.hpp"
#include "moe/parameters.hpp"
#include "moe/types.hpp"
#include "moe/workers.hpp"

namespace moe {

namespace detail {

/// In double, in whose range the square of every float is.
template <class Scalar>
double sum_of_squares(const Scalar* numbers, Index size) {
  constexpr Index at_once = 16;
  Eigen::Array<double, at_once, 1> sums = Eigen::Array<double, at_once, 1>::Zero();
  Index i = 0;
  for (; i + at_once <= size; i += at_once) {
    for (Index j = 0; j < at_once; ++j) sums(j) += double(numbers[i + j]) * double(numbers[i + j]);
  }
  for (; i < size; ++i) sums(0) += double(numbers[i]) * double(numbers[i]);
  return sums.sum();
}

}  // namespace detail

/// Multiplies all gradients by min(1, max_norm / ‖g‖₂), and returns ‖g‖₂ of all of them together as it was before.
/// Pascanu et al. 2013, "On the difficulty of training recurrent neural networks", arXiv:1211.5063, algorithm 1.
/// @throws std::invalid_argument unless max_norm > 0.
template <class Scalar>
double clip_gradients(const std::vector<Parameter<Scalar>>& gradients, double max_norm,
                      ExecutorRef executor = Serial{}) {
  require(max_norm > 0, "clip_gradients: max_norm is " + std::to_string(max_norm) + ", expected more than 0");
  std::array<double, parameter_bands> squares{};
  for_each_piece(gradients, executor, [&](Index band, std::size_t p, Index first, Index size) {
    squares[std::size_t(band)] += detail::sum_of_squares(gradients[p].data + first, size);
  });
  const double norm = std::sqrt(std::accumulate(squares.begin(), squares.end(), 0.0));
  if (norm > max_norm) {
    for_each_piece(gradients, executor, [&](Index, std::size_t p, Index first, Index size) {
      gradients[p].array().segment(first, size) *= Scalar(max_norm / norm);
    });
  }
  return norm;
}

}  // namespace moe
