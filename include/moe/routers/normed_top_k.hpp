/// @file  A linear router that normalises what it reads.
#pragma once

#include <cmath>
#include <string>
#include <utility>

#include "moe/core/check.hpp"
#include "moe/core/routing.hpp"
#include "moe/core/types.hpp"
#include "moe/kernels/vectors.hpp"
#include "moe/routers/detail/logits.hpp"
#include "moe/routers/top_k.hpp"
#include "moe/runtime/workers.hpp"

namespace moe::inline MOE_TARGET {

/// logits = W·x̂, where x̂ = x / √(mean(x²) + norm_epsilon) ⊙ γ · d_model^-½; then TopKChoice, whose weights are
/// multiplied by the scale α of their expert. Gemma 4, with {.top_k = 8, .score = Score::softmax_of_chosen}.
template <class Scalar_>
class NormedTopK {
 public:
  using Scalar = Scalar_;
  using Vector = Eigen::Matrix<Scalar, Eigen::Dynamic, 1>;

  /// @param weight        (num_experts × d_model): row e scores expert e
  /// @param norm_scale    γ, (d_model)
  /// @param expert_scale  α, (num_experts)
  /// @throws std::invalid_argument unless the sizes fit, norm_epsilon ≥ 0 and TopKChoice takes the options.
  NormedTopK(Weight<Scalar> weight, Vector norm_scale, Vector expert_scale, const TopKOptions& options,
             double norm_epsilon = 1e-6)
      : weight_(std::move(weight)),
        norm_scale_(std::move(norm_scale)),
        expert_scale_(std::move(expert_scale)),
        norm_epsilon_(static_cast<Scalar>(norm_epsilon)),
        choice_(weight_.rows(), options, {}, "NormedTopK") {
    require_equal(norm_scale_.size(), d_model(), "NormedTopK: norm_scale.size()");
    require_equal(expert_scale_.size(), num_experts(), "NormedTopK: expert_scale.size()");
    require(norm_epsilon >= 0, "NormedTopK: norm_epsilon is " + std::to_string(norm_epsilon) + ", expected 0 or more");
  }

  Index d_model() const { return weight_.cols(); }
  Index num_experts() const { return weight_.rows(); }
  Index top_k() const { return choice_.top_k(); }
  const TopKOptions& options() const { return choice_.options(); }
  const Weight<Scalar>& weight() const { return weight_; }
  const Vector& norm_scale() const { return norm_scale_; }
  const Vector& expert_scale() const { return expert_scale_; }
  const TopKChoice<Scalar>& choice() const { return choice_; }

  /// To write.
  Eigen::Map<Weight<Scalar>> weight() { return {weight_.data(), weight_.rows(), weight_.cols()}; }
  Eigen::Map<Vector> norm_scale() { return {norm_scale_.data(), norm_scale_.size()}; }
  Eigen::Map<Vector> expert_scale() { return {expert_scale_.data(), expert_scale_.size()}; }

  void route(const ConstMatrixRef<Scalar>& x, Routing<Scalar>& routing, Workers& workers) const {
    choice_.route(linear_logits(weight_, Vector(), normalize(x, workers), routing, workers), routing, workers);
    for (std::size_t r = 0; r < routing.expert.size(); ++r) routing.weight[r] *= expert_scale_(routing.expert[r]);
  }

  /// x̂, (d_model × n_tokens), in memory of the workers.
  Eigen::Map<Matrix<Scalar>, Eigen::Aligned64> normalize(const ConstMatrixRef<Scalar>& x, Workers& workers) const {
    auto normed = workers.shared().matrix<Scalar>(d_model(), x.cols());
    workers.for_each_band(x.cols(), tokens_a_task, [&](Index first, Index last, Scratch& scratch) {
      Eigen::Map<Vector> token(scratch.array<Scalar>(d_model()), d_model());  // sums: aligned alike
      Eigen::Map<Vector> scale(scratch.array<Scalar>(d_model()), d_model());
      scale = norm_scale_ / std::sqrt(static_cast<Scalar>(d_model()));
      for (Index t = first; t < last; ++t) {
        token = x.col(t);
        normed.col(t) = token.cwiseProduct(scale) / divisor(token);
      }
    });
    return normed;
  }

  /// √(mean(x²) + norm_epsilon) of a token; 1 where that is 0, so that 0 stays 0.
  template <class Token>
  Scalar divisor(const Token& token) const {
    const Scalar rms = std::sqrt(kernels::dot(token, token) / static_cast<Scalar>(d_model()) + norm_epsilon_);
    return rms == 0 ? Scalar(1) : rms;
  }

  /// Under Gemma's names.
  template <class Visit>
  void visit_parameters(Visit& visit) {
    visit("proj.weight", weight_);
    visit("scale", norm_scale_);
    visit("per_expert_scale", expert_scale_);
  }

 private:
  static constexpr Index tokens_a_task = 16;

  Weight<Scalar> weight_;
  Vector norm_scale_;
  Vector expert_scale_;
  Scalar norm_epsilon_;
  TopKChoice<Scalar> choice_;
};

}  // namespace moe::inline MOE_TARGET
