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
#include "moe/kernels/lanes.hpp"
#include "moe/kernels/multiply_add.hpp"
#include "moe/runtime/executors/serial.hpp"
#include "moe/runtime/workers.hpp"
#include "moe/train/parameter_pieces.hpp"

namespace moe::inline MOE_TARGET {

namespace detail {

/// In double, in whose range the square of every float is.
template <class Scalar>
double sum_of_squares(const Scalar* numbers, Index size) {
  constexpr int at_once = 16, L = kernels::lanes<double>;
  using kernels::multiply_add;
  using Some = typename kernels::detail::VectorOf<Scalar, L * sizeof(Scalar)>::type;
  kernels::Lanes<double> lanes[at_once / L] = {};
  Index i = 0;
  for (; i + at_once <= size; i += at_once) {
    kernels::unroll<at_once / L>([&](auto j) __attribute__((always_inline)) {
      const auto some = __builtin_convertvector(kernels::load_as<Some>(numbers + i + j * L), kernels::Lanes<double>);
      lanes[j] = multiply_add(some, some, lanes[j]);
    });
  }
  Eigen::Array<double, at_once, 1> sums;
  kernels::store(sums.data(), lanes);
  for (; i < size; ++i) sums(0) = multiply_add(double(numbers[i]), double(numbers[i]), sums(0));
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

inline void require_max_norm(double max_norm, const char* who = "clip_gradients") {
  if (max_norm > 0) return;  // without making up a message: a warm step allocates nothing
  require(false, std::string(who) + ": max_norm is " + std::to_string(max_norm) + ", expected more than 0");
}

/// What clips gradients whose norm is this.
template <class Scalar>
Scalar clip_factor(double norm, double max_norm) {
  return norm > max_norm ? Scalar(max_norm / norm) : Scalar(1);
}

/// Gradients whose norm is this, clipped.
template <class Scalar>
void clip_from(double norm, const std::vector<Parameter<Scalar>>& gradients, double max_norm, ExecutorRef executor) {
  if (!(norm > max_norm)) return;
  for_each_piece(gradients, executor, [&](Index, std::size_t p, Index first, Index size) {
    gradients[p].array().segment(first, size) *= clip_factor<Scalar>(norm, max_norm);
  });
}

}  // namespace detail

/// ‖g‖₂ of all gradients together, the same to the last bit for any number of threads.
template <class Scalar>
double gradient_norm(const std::vector<Parameter<Scalar>>& gradients, ExecutorRef executor = Serial{}) {
  return std::sqrt(detail::sum_of_squares(gradients, executor));
}

/// Multiplies all gradients by min(1, max_norm / ‖g‖₂), and returns ‖g‖₂ of all of them together as it was before.
/// Pascanu et al. 2013, "On the difficulty of training recurrent neural networks", arXiv:1211.5063, algorithm 1.
/// @throws std::invalid_argument unless max_norm > 0.
template <class Scalar>
double clip_gradients(const std::vector<Parameter<Scalar>>& gradients, double max_norm,
                      ExecutorRef executor = Serial{}) {
  detail::require_max_norm(max_norm);
  const double norm = gradient_norm(gradients, executor);
  detail::clip_from(norm, gradients, max_norm, executor);
  return norm;
}

}  // namespace moe::inline MOE_TARGET
