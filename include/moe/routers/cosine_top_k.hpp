/// @file  The router that compares directions instead of lengths.
#pragma once

#include <algorithm>
#include <cmath>
#include <utility>

#include "moe/check.hpp"
#include "moe/kernels/matmul.hpp"
#include "moe/routers/logits.hpp"
#include "moe/routers/top_k.hpp"
#include "moe/routing.hpp"
#include "moe/types.hpp"
#include "moe/workers.hpp"

namespace moe {

/// v / ‖v‖ for vectors of any finite length, however small or large; 0 stays 0.
template <class V>
void to_unit_length(V& v) {
  const auto largest = v.cwiseAbs().maxCoeff();  // taken out first, so that no square over- or underflows
  if (!(largest > 0)) return;
  v /= largest;
  v /= v.norm();
}

/// logits_e = τ · cos(P·x, s_e), where τ = exp(min(log_scale, ln 100)), and a vector of zeros has cosine 0 with any;
/// then TopKChoice. Chi et al. 2022, arXiv:2204.09179; with this bound on τ: Tutel.
template <class Scalar_>
class CosineTopK {
 public:
  using Scalar = Scalar_;
  using Vector = Eigen::Matrix<Scalar, Eigen::Dynamic, 1>;

  /// @param projection  P, (d_projected × d_model)
  /// @param experts     (num_experts × d_projected): row e is the embedding s_e of expert e
  /// @throws std::invalid_argument unless the sizes fit and TopKChoice takes the options.
  CosineTopK(Weight<Scalar> projection, Weight<Scalar> experts, const TopKOptions& options, double log_scale)
      : projection_(std::move(projection)),
        experts_(std::move(experts)),
        log_scale_(log_scale),
        choice_(experts_.rows(), options, {}, "CosineTopK") {
    require(projection_.rows() >= 1, "CosineTopK: projection.rows() is 0, expected 1 or more");
    require_equal(experts_.cols(), projection_.rows(), "CosineTopK: experts.cols()");
    scaled_directions_.resize(experts_.rows(), experts_.cols());
    for (Index e = 0; e < num_experts(); ++e) {
      Vector direction = experts_.row(e);
      to_unit_length(direction);
      scaled_directions_.row(e) = static_cast<Scalar>(scale()) * direction;
    }
  }

  Index d_model() const { return projection_.cols(); }
  Index num_experts() const { return experts_.rows(); }
  Index top_k() const { return choice_.top_k(); }
  const TopKOptions& options() const { return choice_.options(); }
  const Weight<Scalar>& projection() const { return projection_; }
  const Weight<Scalar>& experts() const { return experts_; }
  double log_scale() const { return log_scale_; }

  /// τ
  double scale() const { return std::exp(std::min(log_scale_, std::log(100.0))); }

  void route(const ConstMatrixRef<Scalar>& x, Routing<Scalar>& routing, Workers& workers) const {
    auto projected = workers.shared().matrix<Scalar>(projection_.rows(), x.cols());
    kernels::matmul<Scalar, Scalar>(map_of(projection_), x, projected, workers);
    workers.for_each_band(x.cols(), tokens_a_task, [&](Index first, Index last, Scratch& scratch) {
      Eigen::Map<Vector> direction(scratch.array<Scalar>(projected.rows()), projected.rows());  // sums: aligned alike
      for (Index t = first; t < last; ++t) {
        direction = projected.col(t);
        to_unit_length(direction);
        projected.col(t) = direction;
      }
    });
    choice_.route(linear_logits(scaled_directions_, Vector(), projected, routing, workers), routing, workers);
  }

 private:
  static constexpr Index tokens_a_task = 16;

  Weight<Scalar> projection_, experts_;
  double log_scale_;
  Weight<Scalar> scaled_directions_;  // τ · s_e / ‖s_e‖
  TopKChoice<Scalar> choice_;
};

}  // namespace moe
