/// @file  What an optimiser checks before it writes.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <functional>
#include <string>
#include <vector>

#include "moe/core/check.hpp"
#include "moe/core/parameters.hpp"
#include "moe/core/types.hpp"
#include "moe/runtime/executors/serial.hpp"
#include "moe/runtime/workers.hpp"
#include "moe/train/parameter_pieces.hpp"

namespace moe::inline MOE_TARGET {

/// @throws std::invalid_argument naming the first parameter whose gradient has another name or shape, and both shapes.
template <class Scalar>
void require_alike(const std::vector<Parameter<Scalar>>& parameters, const std::vector<Parameter<Scalar>>& gradients) {
  const auto shape = [](const Parameter<Scalar>& p) {
    return p.name + " (" + std::to_string(p.rows) + " × " + std::to_string(p.cols) + ")";
  };
  for (std::size_t p = 0; p < parameters.size() && p < gradients.size(); ++p) {
    const auto &its = parameters[p], &gradient = gradients[p];
    if (its.name == gradient.name && its.rows == gradient.rows && its.cols == gradient.cols) continue;
    require(false,
            "optimiser: gradient " + std::to_string(p) + " is of " + shape(gradient) + ", expected " + shape(its));
  }
  require_equal(static_cast<long long>(gradients.size()), static_cast<long long>(parameters.size()),
                "optimiser: gradients.size()");
}

/// @throws std::invalid_argument naming two parameters that have a number in common: it would learn twice.
template <class Scalar>
void require_apart(std::vector<Parameter<Scalar>> parameters) {
  std::erase_if(parameters, [](const auto& parameter) { return parameter.size() == 0; });
  std::ranges::stable_sort(parameters, std::less<>(), &Parameter<Scalar>::data);
  for (std::size_t p = 1; p < parameters.size(); ++p) {
    const auto &before = parameters[p - 1], &its = parameters[p];
    require(std::less_equal<>()(before.data + before.size(), its.data),
            "optimiser: " + before.name + " and " + its.name + " share memory, expected each parameter once");
  }
}

/// @throws std::invalid_argument naming the first parameter whose gradient holds a NaN or an infinity.
template <class Scalar>
void require_finite(const std::vector<Parameter<Scalar>>& gradients, ExecutorRef executor = Serial{}) {
  std::array<bool, parameter_bands> finite;
  finite.fill(true);
  for_each_piece(gradients, executor, [&](Index band, std::size_t p, Index first, Index size) {
    const auto piece = gradients[p].array().segment(first, size);
    if ((piece * Scalar(0)).sum() != 0) finite[std::size_t(band)] = false;  // 0 · x is 0 for a finite x alone
  });
  if (std::all_of(finite.begin(), finite.end(), [](bool is) { return is; })) return;
  for (const auto& gradient : gradients) {
    require(gradient.array().allFinite(), "optimiser: the gradient of " + gradient.name + " is not finite");
  }
}

}  // namespace moe::inline MOE_TARGET
