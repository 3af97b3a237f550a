/// @file  AdamW: Adam with decay that is not mixed into the gradient.
#pragma once

#include <cmath>
#include <cstddef>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "moe/core/check.hpp"
#include "moe/core/parameters.hpp"
#include "moe/core/types.hpp"
#include "moe/kernels/lanes.hpp"
#include "moe/kernels/multiply_add.hpp"
#include "moe/kernels/power_of_two.hpp"
#include "moe/kernels/registers.hpp"
#include "moe/kernels/square_root.hpp"
#include "moe/runtime/executors/serial.hpp"
#include "moe/runtime/workers.hpp"
#include "moe/train/optimisers/parameter_groups.hpp"
#include "moe/train/optimisers/require_alike.hpp"
#include "moe/train/optimisers/take_options.hpp"
#include "moe/train/parameter_pieces.hpp"

namespace moe::inline MOE_TARGET {

/// They begin as those of PyTorch's AdamW. All are 0 or more, betas less than 1, and epsilon more than 0.
struct AdamWOptions {
  double learning_rate = 1e-3;
  double beta1 = 0.9;
  double beta2 = 0.999;
  double epsilon = 1e-8;
  double weight_decay = 0.01;
};

namespace detail {

/// base^exponent, with bits that no C library decides.
inline double power(double base, Index exponent) {
  double product = 1;
  for (; exponent > 0; exponent /= 2, base *= base) {
    if (exponent % 2 != 0) product *= base;
  }
  return product;
}

/// A factor near 1. Its distance from 1 counts, which a Scalar would round to a thousandth of a percent.
template <class Scalar>
struct Beta {
  explicit Beta(double beta) : near(Scalar(beta)), rest(Scalar(beta - double(near))), other(Scalar(1 - beta)) {}

  using Lanes = kernels::Lanes<Scalar>;

  /// β·old + (1 − β)·now
  MOE_INLINE Lanes mean(const Lanes& old, const Lanes& now) const {
    using kernels::multiply_add;
    return multiply_add(other - Lanes{}, now, multiply_add(rest - Lanes{}, old, near * old));
  }

  Scalar near, rest, other;  // β = near + rest, and 1 − β
};

/// One step of AdamW for a register of parameters.
template <class Scalar>
struct AdamWStep {
  using Wide = kernels::Lanes<Scalar>;

  Beta<Scalar> beta1, beta2;
  Scalar epsilon;
  Scalar rate;    // η / (1 − β₁ᵗ)
  Scalar unbias;  // 1 / √(1 − β₂ᵗ)
  Scalar decay;   // ηλ

  MOE_INLINE void operator()(const Wide& g, Wide& mean, Wide& root, Wide& value) const {
    using kernels::multiply_add;
    const kernels::PowerOfTwo<Scalar> size(g, mean, root);  // so that squares are in range, whatever gradients are
    const Wide gs = g * size.inverse(), rs = root * size.inverse();
    const Wide ms = beta1.mean(mean * size.inverse(), gs);
    const Wide next = kernels::square_root(beta2.mean(rs * rs, gs * gs));
    const Wide step = rate * ms / multiply_add(next, unbias - Wide{}, epsilon * size.inverse());
    mean = ms * size.value();
    root = next * size.value();
    value -= multiply_add(decay - Wide{}, value, step);
  }
};

}  // namespace detail

/// m ← β₁m + (1 − β₁)g,  v ← β₂v + (1 − β₂)g²,
/// p ← p − η·(λp + m̂ / (√v̂ + ε)),  m̂ = m / (1 − β₁ᵗ),  v̂ = v / (1 − β₂ᵗ).
/// Computed in Scalar, and right for every finite gradient: what is squared is divided by a power of two before. Of v
/// its root is remembered, which has the range of gradients: v itself overflows where these are 1.9e19. The same to the
/// last bit for any number of threads, wherever parameters lie, and from every compiler.
///
/// Loshchilov & Hutter 2019, "Decoupled Weight Decay Regularization", arXiv:1711.05101, algorithm 2.
template <class Scalar_>
class AdamW {
 public:
  using Scalar = Scalar_;
  using Array = Eigen::Array<Scalar, Eigen::Dynamic, 1>;  ///< Numbers of one parameter.

  /// @param parameters  what is to learn; they stay where they are as long as this lives
  /// @param groups      those of them that learn at another rate, or decay otherwise
  /// @throws std::invalid_argument as group_factors(), or naming an option that is out of range, or two parameters that
  /// share memory.
  explicit AdamW(std::vector<Parameter<Scalar>> parameters, const AdamWOptions& options = {},
                 const std::vector<ParameterGroup>& groups = {})
      : parameters_(std::move(parameters)), options_(options), factors_(group_factors(parameters_, groups)) {
    require_options();
    require_apart(parameters_);
    for (const auto& parameter : parameters_) {
      mean_.push_back(Array::Zero(parameter.size()));
      root_.push_back(Array::Zero(parameter.size()));
    }
  }

  AdamWOptions& options() { return options_; }
  Index steps() const { return static_cast<Index>(steps_(0)); }  ///< Steps that were taken.

  /// All that step() remembers, by name, to be saved beside the parameters: with both read back, training goes on as if
  /// it had never stopped.
  std::vector<Parameter<Scalar>> state() {
    std::vector<Parameter<Scalar>> all{{"adamw.steps", steps_.data(), 1, 1}};
    for (std::size_t p = 0; p < parameters_.size(); ++p) {
      const auto& [name, data, rows, cols] = parameters_[p];
      all.push_back({"adamw.mean." + name, mean_[p].data(), rows, cols});
      all.push_back({"adamw.root." + name, root_[p].data(), rows, cols});
    }
    return all;
  }

  /// @param gradients  of the parameters, in the same order
  /// @throws std::invalid_argument naming the parameter if names or shapes differ, or a gradient is not finite, or an
  /// option that is out of range; then nothing has been written.
  void step(const std::vector<Parameter<Scalar>>& gradients, ExecutorRef executor = Serial{}) {
    require_alike(parameters_, gradients);
    require_finite(gradients, executor);
    update<const Scalar>(gradients, Scalar(1), executor);
  }

  /// clip_gradients(), step() and set_to_zero() in one, to the same bits: what backward() adds to, this takes, and
  /// leaves zeros for the next one. Gradients are read twice and written once.
  /// @return their norm, or the one that was given
  /// @throws std::invalid_argument as step(), or unless max_norm > 0 and a given norm is finite and no less than that
  /// of these gradients; then nothing has been written.
  double take(const std::vector<Parameter<Scalar>>& gradients, const TakeOptions& options = {},
              ExecutorRef executor = Serial{}) {
    return detail::take(parameters_, gradients, options, executor,
                        [&](Scalar factor) { update<Scalar>(gradients, factor, executor); });
  }

 private:
  /// A step by gradients times a factor.
  /// @tparam Gradient  const Scalar, or Scalar where zeros are to be left
  template <class Gradient>
  void update(const std::vector<Parameter<Scalar>>& gradients, Scalar factor, ExecutorRef executor) {
    require_options();
    steps_(0) += 1;
    const double unbias_mean = 1 - detail::power(options_.beta1, steps());
    const double unbias_square = 1 - detail::power(options_.beta2, steps());
    for_each_piece(parameters_, executor, [&](Index, std::size_t p, Index first, Index size) {
      const double rate = options_.learning_rate * factors_[p].learning_rate;
      const detail::AdamWStep<Scalar> step{.beta1 = detail::Beta<Scalar>(options_.beta1),
                                           .beta2 = detail::Beta<Scalar>(options_.beta2),
                                           .epsilon = Scalar(options_.epsilon),
                                           .rate = Scalar(rate / unbias_mean),
                                           .unbias = Scalar(1 / std::sqrt(unbias_square)),
                                           .decay = Scalar(rate * options_.weight_decay * factors_[p].weight_decay)};
      using Wide = kernels::Lanes<Scalar>;
      const auto update_register = [&](Wide& g, Wide& mean, Wide& root, Wide& value) __attribute__((always_inline)) {
        step(g * factor, mean, root, value);
        g = Wide{};
      };
      Gradient* const gradient = gradients[p].data + first;
      kernels::for_each_register(size, update_register, gradient, mean_[p].data() + first, root_[p].data() + first,
                                 parameters_[p].data + first);
    });
  }

  void require_options() const {
    constexpr double smallest = std::numeric_limits<Scalar>::min(), largest = std::numeric_limits<Scalar>::max();
    require_in_range(0, options_.learning_rate, largest, "AdamW: learning_rate");
    require_in_range(0, options_.beta1, 1, "AdamW: beta1");
    require_in_range(0, options_.beta2, 1, "AdamW: beta2");
    require(options_.beta1 != 1, "AdamW: beta1 is 1, expected less");
    require(options_.beta2 != 1, "AdamW: beta2 is 1, expected less");
    require_in_range(smallest, options_.epsilon, largest, "AdamW: epsilon");  // steps of no gradient are 0 / ε
    require_in_range(0, options_.weight_decay, largest, "AdamW: weight_decay");
  }

  std::vector<Parameter<Scalar>> parameters_;
  AdamWOptions options_;
  std::vector<GroupFactors> factors_;  // of each parameter
  std::vector<Array> mean_, root_;     // m and √v
  Array steps_ = Array::Zero(1);       // a Scalar, to lie in a file beside the others; exact up to 2^24
};

}  // namespace moe::inline MOE_TARGET
