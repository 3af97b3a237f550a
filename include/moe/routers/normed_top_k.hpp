/// @file  A linear router that normalises what it reads.
#pragma once

#include <cmath>
#include <cstddef>
#include <string>
#include <utility>

#include "moe/core/check.hpp"
#include "moe/core/routing.hpp"
#include "moe/core/tokens.hpp"
#include "moe/core/types.hpp"
#include "moe/kernels/matmul.hpp"
#include "moe/kernels/rms_norm.hpp"
#include "moe/routers/logits_router.hpp"
#include "moe/routers/top_k.hpp"
#include "moe/runtime/workers.hpp"

namespace moe::inline MOE_TARGET {

/// logits = W·x̂, where x̂ = x / √(mean(x²) + norm_epsilon) ⊙ γ · d_model^-½.
template <class Scalar_>
class NormedLogits {
 public:
  using Scalar = Scalar_;

  /// @param weight      (num_experts × d_model): row e scores expert e
  /// @param norm_scale  γ, (d_model)
  /// @param who         what errors begin with
  /// @throws std::invalid_argument unless the sizes fit and norm_epsilon ≥ 0.
  NormedLogits(Weight<Scalar> weight, Vector<Scalar> norm_scale, double norm_epsilon = 1e-6,
               const std::string& who = "NormedLogits")
      : weight_(std::move(weight)),
        norm_(std::move(norm_scale), {.epsilon = norm_epsilon, .factor = 1 / std::sqrt(double(weight_.cols()))},
              who + ": norm_") {
    require_equal(norm_.size(), d_model(), who + ": norm_scale.size()");
  }

  Index d_model() const { return weight_.cols(); }
  Index num_experts() const { return weight_.rows(); }
  const Weight<Scalar>& weight() const { return weight_; }
  const RmsNorm<Scalar>& norm() const { return norm_; }
  RmsNorm<Scalar>& norm() { return norm_; }
  const Vector<Scalar>& norm_scale() const { return norm_.gain(); }  ///< γ, (d_model).
  auto weight() { return to_write(weight_); }
  auto norm_scale() { return norm_.gain(); }  ///< γ, to write.

  void compute(const Tokens<Scalar>& tokens, MatrixRef<Scalar> logits, Workers& workers) const {
    kernels::matmul<Scalar, Scalar>(map_of(weight_), normalize(tokens.x, workers), logits, workers);
  }

  /// x̂, (d_model × n_tokens), in memory of the workers.
  Eigen::Map<Matrix<Scalar>, Eigen::Aligned64> normalize(const ConstMatrixRef<Scalar>& x, Workers& workers) const {
    auto normed = workers.shared().matrix<Scalar>(d_model(), x.cols());
    norm_.apply(x, normed, workers);
    return normed;
  }

  /// Under Gemma's names.
  template <class Visit>
  void visit_parameters(Visit& visit) {
    visit("proj.weight", weight_);
    visit("scale", norm_.gain());
  }

 private:
  Weight<Scalar> weight_;
  RmsNorm<Scalar> norm_;
};

/// TopKChoice, whose weights are then multiplied by the scale α of their expert.
template <class Scalar_>
class ScaledTopKChoice {
 public:
  using Scalar = Scalar_;

  /// @param expert_scale  α, (num_experts)
  /// @throws std::invalid_argument unless there is a scale for each expert and TopKChoice takes the options.
  ScaledTopKChoice(Index num_experts, const TopKOptions& options, Vector<Scalar> expert_scale,
                   const std::string& who = "ScaledTopKChoice")
      : choice_(num_experts, options, {}, who), expert_scale_(std::move(expert_scale)) {
    require_equal(expert_scale_.size(), num_experts, who + ": expert_scale.size()");
  }

  Index top_k() const { return choice_.top_k(); }
  /// Of the choice whose weights are then multiplied.
  const TopKOptions& options() const { return choice_.options(); }
  const TopKChoice<Scalar>& unscaled() const { return choice_; }
  const Vector<Scalar>& expert_scale() const { return expert_scale_; }
  auto expert_scale() { return to_write(expert_scale_); }

  /// @throws std::invalid_argument as that of TopKChoice.
  Index experts_for(Index num_logits) const { return choice_.experts_for(num_logits); }

  void route(const ConstMatrixRef<Scalar>& logits, Routing<Scalar>& routing, Workers& workers) const {
    choice_.route(logits, routing, workers);
    for (std::size_t r = 0; r < routing.expert.size(); ++r) routing.weight[r] *= expert_scale_(routing.expert[r]);
  }

  /// Under Gemma's name.
  template <class Visit>
  void visit_parameters(Visit& visit) {
    visit("per_expert_scale", expert_scale_);
  }

 private:
  TopKChoice<Scalar> choice_;
  Vector<Scalar> expert_scale_;
};

/// NormedLogits, then ScaledTopKChoice. Gemma 4, with {.top_k = 8, .score = Score::softmax_of_chosen}.
template <class Scalar>
class NormedTopK : public LogitsRouter<NormedLogits<Scalar>, ScaledTopKChoice<Scalar>> {
 public:
  /// @param weight        (num_experts × d_model): row e scores expert e
  /// @param norm_scale    γ, (d_model)
  /// @param expert_scale  α, (num_experts)
  /// @throws std::invalid_argument unless the sizes fit, norm_epsilon ≥ 0 and TopKChoice takes the options.
  NormedTopK(Weight<Scalar> weight, Vector<Scalar> norm_scale, Vector<Scalar> expert_scale, const TopKOptions& options,
             double norm_epsilon = 1e-6)
      : NormedTopK::LogitsRouter(
            NormedLogits<Scalar>(std::move(weight), std::move(norm_scale), norm_epsilon, "NormedTopK"), std::in_place,
            options, std::move(expert_scale), "NormedTopK") {}
};

}  // namespace moe::inline MOE_TARGET
