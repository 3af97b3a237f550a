/// @file  Keeps a step from being too large.
#pragma once

#include <array>
#include <cmath>
#include <cstddef>
#include <numeric>
#include <string>
#include <vector>

#include "moe/core/check.hpp"
#include "moe/core/parameters.hpp"
#include "moe/core/types.hpp"
#include "moe/kernels/multiply_add.hpp"
#include "moe/runtime/executors/serial.hpp"
#include "moe/runtime/workers.hpp"
#include "moe/train/parameter_pieces.hpp"

namespace moe::inline MOE_TARGET {

namespace detail {

/// In double, in whose range the square of every float is.
template <class Scalar>
double sum_of_squares(const Scalar* numbers, Index size) {
  constexpr Index at_once = 16;
  Eigen::Array<double, at_once, 1> sums = Eigen::Array<double, at_once, 1>::Zero();
  const auto add = [](double& sum, double number) { sum = kernels::multiply_add(number, number, sum); };
  Index i = 0;
  for (; i + at_once <= size; i += at_once) {
    for (Index j = 0; j < at_once; ++j) add(sums(j), double(numbers[i + j]));
  }
  for (; i < size; ++i) add(sums(0), double(numbers[i]));
  return sums.sum();
}

template <class Scalar>
double sum_of_squares(const std::vector<Parameter<Scalar>>& gradients, ExecutorRef executor) {
  std::array<double, parameter_bands> squares{};
  for_each_piece(gradients, executor, [&](Index band, std::size_t p, Index first, Index size) {
    squares[std::size_t(band)] += sum_of_squares(gradients[p].data + first, size);
  });
  return std::accumulate(squares.begin(), squares.end(), 0.0);
}

inline void require_max_norm(double max_norm) {
  if (max_norm > 0) return;  // without making up a message: a warm step allocates nothing
  require(false, "clip_gradients: max_norm is " + std::to_string(max_norm) + ", expected more than 0");
}

/// Gradients whose norm is this, clipped.
template <class Scalar>
void clip_from(double norm, const std::vector<Parameter<Scalar>>& gradients, double max_norm, ExecutorRef executor) {
  if (!(norm > max_norm)) return;
  for_each_piece(gradients, executor, [&](Index, std::size_t p, Index first, Index size) {
    gradients[p].array().segment(first, size) *= Scalar(max_norm / norm);
  });
}

}  // namespace detail

/// Multiplies all gradients by min(1, max_norm / ‖g‖₂), and returns ‖g‖₂ of all of them together as it was before.
/// Pascanu et al. 2013, "On the difficulty of training recurrent neural networks", arXiv:1211.5063, algorithm 1.
/// @throws std::invalid_argument unless max_norm > 0.
template <class Scalar>
double clip_gradients(const std::vector<Parameter<Scalar>>& gradients, double max_norm,
                      ExecutorRef executor = Serial{}) {
  detail::require_max_norm(max_norm);
  const double norm = std::sqrt(detail::sum_of_squares(gradients, executor));
  detail::clip_from(norm, gradients, max_norm, executor);
  return norm;
}

}  // namespace moe::inline MOE_TARGET
