/// @file  Stochastic gradient descent with momentum.
#pragma once

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

struct SgdOptions {
  double learning_rate = 1e-2;
  double momentum = 0;
  double weight_decay = 0;
};

/// b ← μb + g + λp,  p ← p − η·b.  Polyak 1964; as PyTorch's SGD. The same to the last bit for any number
/// of threads, and wherever parameters lie.
template <class Scalar_>
class Sgd {
 public:
  using Scalar = Scalar_;
  using Array = Eigen::Array<Scalar, Eigen::Dynamic, 1>;

  /// As AdamW's.
  explicit Sgd(std::vector<Parameter<Scalar>> parameters, const SgdOptions& options = {},
               const std::vector<ParameterGroup>& groups = {})
      : parameters_(std::move(parameters)), options_(options), factors_(group_factors(parameters_, groups)) {
    for (const auto& parameter : parameters_) velocity_.push_back(Array::Zero(parameter.size()));
  }

  SgdOptions& options() { return options_; }

  /// As AdamW::state().
  std::vector<Parameter<Scalar>> state() {
    std::vector<Parameter<Scalar>> all;
    for (std::size_t p = 0; p < parameters_.size(); ++p) {
      const auto& [name, data, rows, cols] = parameters_[p];
      all.push_back({"sgd.velocity." + name, velocity_[p].data(), rows, cols});
    }
    return all;
  }

  /// As AdamW::step().
  void step(const std::vector<Parameter<Scalar>>& gradients, ExecutorRef executor = Serial{}) {
    require_alike(parameters_, gradients);
    require_finite(gradients, executor);
    for_each_piece(parameters_, executor, [&](Index, std::size_t p, Index first, Index size) {
      const auto rate = Scalar(options_.learning_rate * factors_[p].learning_rate);
      const auto decay = Scalar(options_.weight_decay * factors_[p].weight_decay);
      using Numbers = Block<Scalar>;
      const auto update = [&](const Numbers& g, Numbers& velocity, Numbers& value) {
        Numbers next = g;
        kernels::add_scaled(Scalar(options_.momentum), velocity, next);
        kernels::add_scaled(decay, value, next);
        velocity = next;
        kernels::add_scaled(-rate, velocity, value);
      };
      const Scalar* const gradient = gradients[p].data + first;
      for_each_block(size, update, gradient, velocity_[p].data() + first, parameters_[p].data + first);
    });
  }

 private:
  std::vector<Parameter<Scalar>> parameters_;
  SgdOptions options_;
  std::vector<GroupFactors> factors_;  // of each parameter
  std::vector<Array> velocity_;
};

}  // namespace moe::inline MOE_TARGET
