/// @file  AdamW: Adam with decay that is not mixed into the gradient.
#pragma once

#include <cmath>
#include <cstddef>
#include <string>
#include <utility>
#include <vector>

#include "moe/core/parameters.hpp"
#include "moe/core/types.hpp"
#include "moe/kernels/vectors.hpp"
#include "moe/runtime/executors/serial.hpp"
#include "moe/runtime/workers.hpp"
#include "moe/train/optimisers/blocks.hpp"
#include "moe/train/optimisers/parameter_groups.hpp"
#include "moe/train/optimisers/require_alike.hpp"
#include "moe/train/parameter_pieces.hpp"

namespace moe::inline MOE_TARGET {

struct AdamWOptions {
  double learning_rate = 1e-3;
  double beta1 = 0.9;
  double beta2 = 0.999;
  double epsilon = 1e-8;
  double weight_decay = 0.01;
};

/// m ← β₁m + (1 − β₁)g,  v ← β₂v + (1 − β₂)g²,
/// p ← p − η·(λp + m̂ / (√v̂ + ε)),  m̂ = m / (1 − β₁ᵗ),  v̂ = v / (1 − β₂ᵗ).
/// The same to the last bit for any number of threads, and wherever parameters lie.
/// Loshchilov & Hutter 2019, "Decoupled Weight Decay Regularization", arXiv:1711.05101, algorithm 2.
template <class Scalar_>
class AdamW {
 public:
  using Scalar = Scalar_;
  using Array = Eigen::Array<Scalar, Eigen::Dynamic, 1>;

  /// @param parameters  what is to learn; they stay where they are as long as this lives
  /// @param groups      those of them that learn at another rate, or decay otherwise
  /// @throws std::invalid_argument as group_factors().
  explicit AdamW(std::vector<Parameter<Scalar>> parameters, const AdamWOptions& options = {},
                 const std::vector<ParameterGroup>& groups = {})
      : parameters_(std::move(parameters)), options_(options), factors_(group_factors(parameters_, groups)) {
    for (const auto& parameter : parameters_) {
      mean_.push_back(Array::Zero(parameter.size()));
      square_.push_back(Array::Zero(parameter.size()));
    }
  }

  AdamWOptions& options() { return options_; }
  Index steps() const { return static_cast<Index>(steps_(0)); }

  /// All that step() remembers, by name, to be saved beside the parameters: with both read back, training goes on as if
  /// it had never stopped.
  std::vector<Parameter<Scalar>> state() {
    std::vector<Parameter<Scalar>> all{{"adamw.steps", steps_.data(), 1, 1}};
    for (std::size_t p = 0; p < parameters_.size(); ++p) {
      const auto& [name, data, rows, cols] = parameters_[p];
      all.push_back({"adamw.mean." + name, mean_[p].data(), rows, cols});
      all.push_back({"adamw.square." + name, square_[p].data(), rows, cols});
    }
    return all;
  }

  /// @param gradients  of the parameters, in the same order
  /// @throws std::invalid_argument naming the parameter if names or shapes differ, or a gradient is not finite; then
  /// nothing has been written.
  void step(const std::vector<Parameter<Scalar>>& gradients, ExecutorRef executor = Serial{}) {
    require_alike(parameters_, gradients);
    require_finite(gradients, executor);
    steps_(0) += 1;
    const auto b1 = Scalar(options_.beta1), b2 = Scalar(options_.beta2), epsilon = Scalar(options_.epsilon);
    const double unbias_mean = 1 - std::pow(options_.beta1, double(steps_(0)));
    const auto unbias = Scalar(1 / (1 - std::pow(options_.beta2, double(steps_(0)))));
    for_each_piece(parameters_, executor, [&](Index, std::size_t p, Index first, Index size) {
      const double learning_rate = options_.learning_rate * factors_[p].learning_rate;
      const auto rate = Scalar(learning_rate / unbias_mean);
      const auto kept = Scalar(1 - learning_rate * options_.weight_decay * factors_[p].weight_decay);
      using Numbers = Block<Scalar>;
      const auto update = [&](const Numbers& g, Numbers& mean, Numbers& square, Numbers& value) {
        mean *= b1;
        kernels::add_scaled(1 - b1, g, mean);
        square *= b2;
        kernels::add_scaled(Numbers((1 - b2) * g), g, square);
        Numbers next = -rate * mean / ((unbias * square).sqrt() + epsilon);
        kernels::add_scaled(kept, value, next);
        value = next;
      };
      const Scalar* const gradient = gradients[p].data + first;
      for_each_block(size, update, gradient, mean_[p].data() + first, square_[p].data() + first,
                     parameters_[p].data + first);
    });
  }

 private:
  std::vector<Parameter<Scalar>> parameters_;
  AdamWOptions options_;
  std::vector<GroupFactors> factors_;  // of each parameter
  std::vector<Array> mean_, square_;
  Array steps_ = Array::Zero(1);  // a Scalar, to lie in a file beside the others; exact up to 2^24
};

}  // namespace moe::inline MOE_TARGET
