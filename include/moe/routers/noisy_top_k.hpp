/// @file  A linear router that explores: its logits are noisy before they choose.
#pragma once

#include <cstdint>
#include <iterator>
#include <optional>
#include <span>
#include <string>
#include <utility>

#include "moe/core/check.hpp"
#include "moe/core/random_number.hpp"
#include "moe/core/tokens.hpp"
#include "moe/core/types.hpp"
#include "moe/kernels/matmul.hpp"
#include "moe/kernels/multiply_add.hpp"
#include "moe/kernels/scores.hpp"
#include "moe/routers/logits_router.hpp"
#include "moe/routers/top_k.hpp"
#include "moe/runtime/workers.hpp"

namespace moe::inline MOE_TARGET {

/// logits = W·x + ε ⊙ σ, where ε is standard normal and σ = softplus(W_noise·x) + min_stddev. Reads SideInputs::noise;
/// where there is none it draws ε from SideInputs::seed; where there is no seed either, as in evaluation, nothing is
/// added.
template <class Scalar_>
class NoisyLogits {
 public:
  using Scalar = Scalar_;

  /// @param weight        (num_experts × d_model): row e scores expert e
  /// @param noise_weight  (num_experts × d_model), or empty: σ = min_stddev
  /// @param who           what errors begin with
  /// @throws std::invalid_argument unless the sizes fit and min_stddev ≥ 0.
  NoisyLogits(Weight<Scalar> weight, Weight<Scalar> noise_weight, double min_stddev = 1e-2,
              std::string who = "NoisyLogits")
      : weight_(std::move(weight)),
        noise_weight_(std::move(noise_weight)),
        min_stddev_(static_cast<Scalar>(min_stddev)),
        who_(std::move(who)) {
    if (noise_weight_.size() > 0) {
      require_size(noise_weight_.rows(), num_experts(), "noise_weight.rows()");
      require_size(noise_weight_.cols(), d_model(), "noise_weight.cols()");
    }
    require(min_stddev >= 0, who_ + ": min_stddev is " + std::to_string(min_stddev) + ", expected 0 or more");
  }

  Index d_model() const { return weight_.cols(); }
  Index num_experts() const { return weight_.rows(); }
  const Weight<Scalar>& weight() const { return weight_; }
  const Weight<Scalar>& noise_weight() const { return noise_weight_; }
  auto weight() { return to_write(weight_); }
  auto noise_weight() { return to_write(noise_weight_); }

  /// @throws std::invalid_argument if there is noise, but not a number for each expert of each token.
  void compute(const Tokens<Scalar>& tokens, MatrixRef<Scalar> logits, Workers& workers) const {
    kernels::matmul<Scalar, Scalar>(map_of(weight_), tokens.x, logits, workers);
    with_noise(tokens, [&](const auto& noise) {
      auto sigma = workers.shared().matrix<Scalar>(num_experts(), tokens.count());
      stddev(tokens.x, sigma, workers);
      for_each_logit(tokens.count(), workers, [&](Index e, Index t) {
        logits(e, t) = kernels::multiply_add(noise(e, t), sigma(e, t), logits(e, t));
      });
    });
  }

  /// f(noise), where noise(e, t) is ε of expert e for token t; nothing where no noise is added.
  /// @throws std::invalid_argument if there is noise, but not a number for each expert of each token.
  template <class F>
  void with_noise(const Tokens<Scalar>& tokens, const F& f) const {
    const std::span<const Scalar> noise = tokens.side.noise;
    const std::optional<std::uint64_t> seed = tokens.side.seed;
    if (!noise.empty()) {
      require_size(std::ssize(noise), num_experts() * tokens.count(), "side.noise.size()");
      f([&](Index e, Index t) { return noise[std::size_t(t * num_experts() + e)]; });
    } else if (seed) {
      f([&](Index e, Index t) {
        return static_cast<Scalar>(normal_number(*seed, std::uint64_t(t * num_experts() + e)));
      });
    }
  }

  /// σ, the standard deviation of each logit: what a smooth load is made of.
  /// @param sigma  (num_experts × n_tokens)
  /// @throws std::invalid_argument if a shape is wrong.
  void stddev(const ConstMatrixRef<Scalar>& x, MatrixRef<Scalar> sigma, Workers& workers) const {
    require_size(x.rows(), d_model(), "x.rows()");
    require_size(sigma.rows(), num_experts(), "sigma.rows()");
    require_size(sigma.cols(), x.cols(), "sigma.cols()");
    if (noise_weight_.size() == 0) {
      sigma.setConstant(min_stddev_);
      return;
    }
    kernels::matmul<Scalar, Scalar>(map_of(noise_weight_), x, sigma, workers);
    for_each_logit(x.cols(), workers,
                   [&](Index e, Index t) { sigma(e, t) = softplus(Scalar(sigma(e, t))) + min_stddev_; });
  }

  template <class Visit>
  void visit_parameters(Visit& visit) {
    visit("weight", weight_);
    visit("noise.weight", noise_weight_);
  }

 private:
  static constexpr Index tokens_a_task = 16;

  void require_size(Index got, Index expected, const char* what) const {
    if (got != expected) require_equal(got, expected, who_ + ": " + what);  // no string unless it is needed
  }

  template <class F>
  void for_each_logit(Index num_tokens, Workers& workers, const F& f) const {
    workers.for_each_band(num_tokens, tokens_a_task, [&](Index first, Index last, Scratch&) {
      for (Index t = first; t < last; ++t) {
        for (Index e = 0; e < num_experts(); ++e) f(e, t);
      }
    });
  }

  Weight<Scalar> weight_, noise_weight_;
  Scalar min_stddev_;
  std::string who_;
};

/// NoisyLogits, then TopKChoice: Shazeer et al. 2017, arXiv:1701.06538, §2.1. Without W_noise: V-MoE, arXiv:2106.05974,
/// is
///   NoisyTopK(W, {}, {.top_k = 2}, 1.0 / num_experts)
/// and its batch priority WithCapacity.
template <class Scalar>
class NoisyTopK : public LogitsRouter<NoisyLogits<Scalar>, TopKChoice<Scalar>> {
 public:
  /// @param weight        (num_experts × d_model): row e scores expert e
  /// @param noise_weight  (num_experts × d_model), or empty
  /// @throws std::invalid_argument unless the sizes fit, min_stddev ≥ 0, and TopKChoice takes the options.
  NoisyTopK(Weight<Scalar> weight, Weight<Scalar> noise_weight, const TopKOptions& options, double min_stddev = 1e-2)
      : NoisyTopK::LogitsRouter(
            NoisyLogits<Scalar>(std::move(weight), std::move(noise_weight), min_stddev, "NoisyTopK"), std::in_place,
            options, Vector<Scalar>(), "NoisyTopK") {}
};

}  // namespace moe::inline MOE_TARGET
