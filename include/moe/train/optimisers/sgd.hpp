/// @file  Stochastic gradient descent with momentum.
#pragma once

#include <cstddef>
#include <string>
#include <utility>
#include <vector>

#include "moe/parameters.hpp"
#include "moe/train/optimisers/require_alike.hpp"
#include "moe/types.hpp"

namespace moe {

struct SgdOptions {
  double learning_rate = 1e-2;
  double momentum = 0;
  double weight_decay = 0;
};

/// b ← μb + g + λp,  p ← p − η·b.  Polyak 1964; as PyTorch's SGD.
template <class Scalar_>
class Sgd {
 public:
  using Scalar = Scalar_;
  using Array = Eigen::Array<Scalar, Eigen::Dynamic, 1>;

  /// @param parameters  what is to learn; they stay where they are as long as this lives
  explicit Sgd(std::vector<Parameter<Scalar>> parameters, const SgdOptions& options = {})
      : parameters_(std::move(parameters)), options_(options) {
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
  void step(const std::vector<Parameter<Scalar>>& gradients) {
    require_alike(parameters_, gradients);
    require_finite(gradients);
    for (std::size_t p = 0; p < parameters_.size(); ++p) {
      auto value = parameters_[p].array();
      velocity_[p] =
          Scalar(options_.momentum) * velocity_[p] + gradients[p].array() + Scalar(options_.weight_decay) * value;
      value -= Scalar(options_.learning_rate) * velocity_[p];
    }
  }

 private:
  std::vector<Parameter<Scalar>> parameters_;
  SgdOptions options_;
  std::vector<Array> velocity_;
};

}  // namespace moe
