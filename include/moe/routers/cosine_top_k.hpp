/// @file  The router that compares directions instead of lengths.
#pragma once

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>

#include "moe/core/check.hpp"
#include "moe/core/tokens.hpp"
#include "moe/core/types.hpp"
#include "moe/kernels/matmul.hpp"
#include "moe/routers/detail/unit_length.hpp"
#include "moe/routers/logits_router.hpp"
#include "moe/routers/top_k.hpp"
#include "moe/runtime/workers.hpp"

namespace moe::inline MOE_TARGET {

/// logits_e = τ · cos(P·x, s_e), where τ = exp(min(log_scale, ln 100)), and a vector of zeros has cosine 0 with any.
template <class Scalar_>
class CosineLogits {
 public:
  using Scalar = Scalar_;

  /// @param projection  P, (d_projected × d_model)
  /// @param experts     (num_experts × d_projected): row e is the embedding s_e of expert e
  /// @param who         what errors begin with
  /// @throws std::invalid_argument unless the sizes fit.
  CosineLogits(Weight<Scalar> projection, Weight<Scalar> experts, double log_scale,
               const std::string& who = "CosineLogits")
      : projection_(std::move(projection)), experts_(std::move(experts)), log_scale_(static_cast<Scalar>(log_scale)) {
    require(projection_.rows() >= 1, who + ": projection.rows() is 0, expected 1 or more");
    require_equal(experts_.cols(), projection_.rows(), who + ": experts.cols()");
  }

  Index d_model() const { return projection_.cols(); }
  Index num_experts() const { return experts_.rows(); }
  const Weight<Scalar>& projection() const { return projection_; }
  const Weight<Scalar>& experts() const { return experts_; }
  Scalar log_scale() const { return log_scale_.value(); }  ///< ln τ, before it is cut at ln 100.
  auto projection() { return to_write(projection_); }
  auto experts() { return to_write(experts_); }
  Scalar& log_scale() { return log_scale_(0); }  ///< The same, to write.

  /// τ
  Scalar scale() const { return std::exp(std::min(log_scale(), highest_log_scale())); }
  static Scalar highest_log_scale() { return std::log(Scalar(100)); }  ///< ln 100: beyond it τ grows no more.

  void compute(const Tokens<Scalar>& tokens, MatrixRef<Scalar> logits, Workers& workers) const {
    const auto of_tokens = token_directions(tokens.x, workers), of_experts = expert_directions(workers);
    kernels::matmul<Scalar, Scalar>(of_experts.rows(), of_tokens.columns, logits, workers);
    logits *= scale();
  }

  /// Of P·x, (d_projected × n_tokens), in memory of the workers.
  Directions<Scalar> token_directions(const ConstMatrixRef<Scalar>& x, Workers& workers) const {
    auto projected = workers.shared().matrix<Scalar>(projection_.rows(), x.cols());
    kernels::matmul<Scalar, Scalar>(map_of(projection_), x, projected, workers);
    return directions<Scalar>(projected, workers);
  }

  /// Of s, (d_projected × num_experts), in memory of the workers.
  Directions<Scalar> expert_directions(Workers& workers) const {
    auto all = workers.shared().matrix<Scalar>(experts_.cols(), num_experts());
    all = experts_.transpose();
    return directions<Scalar>(all, workers);
  }

  /// Under Tutel's names, whose sim_matrix is the transposed of this one.
  template <class Visit>
  void visit_parameters(Visit& visit) {
    visit("cosine_projector.weight", projection_);
    visit("sim_matrix", experts_);
    visit("temperature", log_scale_);
  }

 private:
  Weight<Scalar> projection_, experts_;
  Eigen::Matrix<Scalar, 1, 1> log_scale_;
};

/// CosineLogits, then TopKChoice. Chi et al. 2022, arXiv:2204.09179; with this bound on τ: Tutel.
template <class Scalar>
class CosineTopK : public LogitsRouter<CosineLogits<Scalar>, TopKChoice<Scalar>> {
 public:
  /// @param projection  P, (d_projected × d_model)
  /// @param experts     (num_experts × d_projected): row e is the embedding s_e of expert e
  /// @throws std::invalid_argument unless the sizes fit and TopKChoice takes the options.
  CosineTopK(Weight<Scalar> projection, Weight<Scalar> experts, const TopKOptions& options, double log_scale)
      : CosineTopK::LogitsRouter(
            CosineLogits<Scalar>(std::move(projection), std::move(experts), log_scale, "CosineTopK"), std::in_place,
            options, Vector<Scalar>(), "CosineTopK") {}
};

}  // namespace moe::inline MOE_TARGET
