/// @file  A layer whose output is scaled, then shifted.
#pragma once

#include <utility>

#include "moe/core/check.hpp"
#include "moe/core/types.hpp"
#include "moe/layers/any_layer.hpp"
#include "moe/runtime/executors/serial.hpp"
#include "moe/runtime/padding.hpp"
#include "moe/runtime/workers.hpp"
#include "moe/runtime/workspace.hpp"

namespace moe::inline MOE_TARGET {

/// y = scale · layer(x) + bias.  JetMoE adds a bias to the whole layer; NLLB scales by 1 − its expert dropout.
template <Layer L>
class AffineOutput : public ShortForwards<AffineOutput<L>> {
 public:
  using Scalar = typename L::Scalar;
  using Vector = Eigen::Matrix<Scalar, Eigen::Dynamic, 1>;

  /// @param bias  (d_model), or empty for none
  /// @throws std::invalid_argument if its size differs.
  AffineOutput(L layer, Scalar scale, Vector bias = {})
      : layer_(std::move(layer)), scale_(scale), bias_(std::move(bias)) {
    if (bias_.size() > 0) require_equal(bias_.size(), layer_.d_model(), "AffineOutput: bias.size()");
  }

  Index d_model() const { return layer_.d_model(); }
  const L& layer() const { return layer_; }
  Scalar scale() const { return scale_; }
  const Vector& bias() const { return bias_; }

  /// To write.
  L& layer() { return layer_; }
  Eigen::Map<Vector> bias() { return {bias_.data(), bias_.size()}; }

  /// As the layer's own.
  void forward(const ConstMatrixRef<Scalar>& x, MatrixRef<Scalar> y, Workspace<Scalar>& ws,
               ExecutorRef executor = Serial{}) const {
    if (is_padded(ws)) return forward_real_tokens(*this, x, y, ws, executor);
    layer_.forward(x, y, ws, executor);
    scale_and_shift(y);
  }
  using ShortForwards<AffineOutput>::forward;

  /// y ← scale · y + bias
  void scale_and_shift(MatrixRef<Scalar> y) const {
    if (scale_ != Scalar(1)) y *= scale_;
    if (bias_.size() == 0) return;
    require_equal(bias_.size(), y.rows(), "AffineOutput: bias.size()");
    y.colwise() += bias_;
  }

  /// The scale is a constant.
  template <class Visit>
  void visit_parameters(Visit& visit) {
    visit.in("", layer_);
    visit("bias", bias_);
  }

 private:
  L layer_;
  Scalar scale_;
  Vector bias_;
};

}  // namespace moe::inline MOE_TARGET
