/// @file  Stochastic gradient descent with momentum.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <limits>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "moe/core/check.hpp"
#include "moe/core/parameters.hpp"
#include "moe/core/types.hpp"
#include "moe/kernels/lanes.hpp"
#include "moe/kernels/multiply_add.hpp"
#include "moe/kernels/registers.hpp"
#include "moe/runtime/executors/serial.hpp"
#include "moe/runtime/workers.hpp"
#include "moe/train/optimisers/parameter_groups.hpp"
#include "moe/train/optimisers/require_alike.hpp"
#include "moe/train/optimisers/take_options.hpp"
#include "moe/train/parameter_pieces.hpp"

namespace moe::inline MOE_TARGET {

/// η, μ and λ of Sgd: 0 or more.
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
  using Array = Eigen::Array<Scalar, Eigen::Dynamic, 1>;  ///< Numbers of one parameter.

  /// As AdamW's.
  explicit Sgd(std::vector<Parameter<Scalar>> parameters, const SgdOptions& options = {},
               const std::vector<ParameterGroup>& groups = {})
      : parameters_(std::move(parameters)), options_(options), factors_(group_factors(parameters_, groups)) {
    require_options();
    require_apart(parameters_);
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

  /// @param gradients  of the parameters, in the same order
  /// @throws std::invalid_argument as AdamW::step(), and naming the parameter if it would not be finite after the step;
  /// then nothing has been written.
  void step(const std::vector<Parameter<Scalar>>& gradients, ExecutorRef executor = Serial{}) {
    require_alike(parameters_, gradients);
    update<const Scalar>(gradients, Scalar(1), executor);
  }

  /// As AdamW::take(), but that gradients are read once more, for what would not be finite.
  double take(const std::vector<Parameter<Scalar>>& gradients, const TakeOptions& options = {},
              ExecutorRef executor = Serial{}) {
    return detail::take(parameters_, gradients, options, executor,
                        [&](Scalar factor) { update<Scalar>(gradients, factor, executor); });
  }

 private:
  using Numbers = kernels::Lanes<Scalar>;

  /// As AdamW's.
  template <class Gradient>
  void update(const std::vector<Parameter<Scalar>>& gradients, Scalar factor, ExecutorRef executor) {
    require_options();
    require_finite_result(gradients, factor, executor);
    for_each_piece(parameters_, executor, [&](Index, std::size_t p, Index first, Index size) {
      const auto update_register = [step = step_of(p, factor)](Numbers& g, Numbers& velocity, Numbers& value)
                                       __attribute__((always_inline)) {
                                         step(g, velocity, value);
                                         g = Numbers{};
                                       };
      Gradient* const gradient = gradients[p].data + first;
      kernels::for_each_register(size, update_register, gradient, velocity_[p].data() + first,
                                 parameters_[p].data + first);
    });
  }

  void require_options() const {
    constexpr double largest = std::numeric_limits<Scalar>::max();
    require_in_range(0, options_.learning_rate, largest, "Sgd: learning_rate");
    require_in_range(0, options_.momentum, largest, "Sgd: momentum");
    require_in_range(0, options_.weight_decay, largest, "Sgd: weight_decay");
  }

  /// Of a register of the parameter p.
  auto step_of(std::size_t p, Scalar factor) const {
    return [factor, rate = Scalar(options_.learning_rate * factors_[p].learning_rate),
            decay = Scalar(options_.weight_decay * factors_[p].weight_decay), momentum = Scalar(options_.momentum)](
               const Numbers& g, Numbers& velocity, Numbers& value) __attribute__((always_inline)) {
      using kernels::multiply_add;
      velocity = multiply_add(momentum - Numbers{}, velocity, g * factor);
      velocity = multiply_add(decay - Numbers{}, value, velocity);
      value = multiply_add(-rate - Numbers{}, velocity, value);
    };
  }

  /// Would the step leave these numbers finite? Where a gradient is not, they would not be, either.
  bool is_finite_after(std::size_t p, const Scalar* gradient, Scalar factor, Index first, Index size) const {
    Numbers wrong{};  // 0 · x is 0 for a finite x alone
    const auto look = [&, step = step_of(p, factor)](const Numbers& g, Numbers& b, Numbers& v) {
      step(g, b, v);
      wrong += b * Scalar(0) + v * Scalar(0);
    };
    const Scalar* const velocity = velocity_[p].data() + first;
    const Scalar* const value = parameters_[p].data + first;
    kernels::for_each_register(size, look, gradient, velocity, value);
    bool finite = true;
    for (int i = 0; i < kernels::lanes<Scalar>; ++i) finite = finite && wrong[i] == 0;
    return finite;
  }

  void require_finite_result(const std::vector<Parameter<Scalar>>& gradients, Scalar factor,
                             ExecutorRef executor) const {
    std::array<bool, parameter_bands> finite;
    finite.fill(true);
    for_each_piece(parameters_, executor, [&](Index band, std::size_t p, Index first, Index size) {
      if (!is_finite_after(p, gradients[p].data + first, factor, first, size)) finite[std::size_t(band)] = false;
    });
    if (std::all_of(finite.begin(), finite.end(), [](bool is) { return is; })) return;
    require_finite(gradients, executor);
    for (std::size_t p = 0; p < parameters_.size(); ++p) {
      if (is_finite_after(p, gradients[p].data, factor, 0, gradients[p].size())) continue;
      std::ostringstream largest, rate;
      largest << gradients[p].array().abs().maxCoeff() * factor;
      rate << options_.learning_rate * factors_[p].learning_rate;
      require(false, "Sgd: " + parameters_[p].name + " would not be finite after this step: its gradient is up to " +
                         largest.str() + ", its learning rate " + rate.str() + "; clip the gradients, or lower it");
    }
  }

  std::vector<Parameter<Scalar>> parameters_;
  SgdOptions options_;
  std::vector<GroupFactors> factors_;  // of each parameter
  std::vector<Array> velocity_;
};

}  // namespace moe::inline MOE_TARGET
