/// @file  Parameters that learn at another rate, or decay otherwise.
#pragma once

#include <cstddef>
#include <limits>
#include <string>
#include <vector>

#include "moe/core/check.hpp"
#include "moe/core/parameters.hpp"
#include "moe/train/freeze.hpp"

namespace moe::inline MOE_TARGET {

/// The parameters whose names fit a pattern, and what multiplies the optimiser's options for them, whatever a schedule
/// makes of these: no decay of biases {.patterns = {"*.bias"}, .weight_decay = 0}, a slower router {{"gate.*"}, 0.1}.
/// A parameter in several groups has the factors of all, one in none learns by the options as they are.
struct ParameterGroup {
  std::vector<std::string> patterns;  // as those of matching()
  double learning_rate = 1;           // times that of the options
  double weight_decay = 1;            // times that of the options
};

/// What all groups together make of one parameter.
struct GroupFactors {
  double learning_rate = 1, weight_decay = 1;
};

/// For each of the parameters, in their order.
/// @throws std::invalid_argument naming a pattern that fits none, or a factor that is negative or not finite.
template <class Scalar>
std::vector<GroupFactors> group_factors(const std::vector<Parameter<Scalar>>& parameters,
                                        const std::vector<ParameterGroup>& groups) {
  std::vector<GroupFactors> factors(parameters.size());
  for (const auto& [patterns, learning_rate, weight_decay] : groups) {
    constexpr double largest = std::numeric_limits<Scalar>::max();
    require_in_range(0, learning_rate, largest, "ParameterGroup: learning_rate");
    require_in_range(0, weight_decay, largest, "ParameterGroup: weight_decay");
    const auto members = matching(parameters, patterns);
    for (std::size_t p = 0, next = 0; p < parameters.size() && next < members.size(); ++p) {
      if (members[next].data != parameters[p].data) continue;
      factors[p].learning_rate *= learning_rate;
      factors[p].weight_decay *= weight_decay;
      ++next;
    }
  }
  return factors;
}

}  // namespace moe::inline MOE_TARGET
