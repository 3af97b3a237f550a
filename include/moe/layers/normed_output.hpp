/// @file  A layer whose output is normalised.
#pragma once

#include <string>
#include <utility>

#include "moe/core/check.hpp"
#include "moe/core/types.hpp"
#include "moe/kernels/rms_norm.hpp"
#include "moe/layers/any_layer.hpp"
#include "moe/runtime/executors/serial.hpp"
#include "moe/runtime/padding.hpp"
#include "moe/runtime/workers.hpp"
#include "moe/runtime/workspace.hpp"

namespace moe::inline MOE_TARGET {

/// y = norm(layer(x)), of what routed and shared experts answer together. A.X K1's post_mlp_layernorm.
template <Layer L>
class NormedOutput : public ShortForwards<NormedOutput<L>> {
 public:
  using Scalar = typename L::Scalar;

  /// @param norm  of d_model numbers
  /// @param name  of the norm in a checkpoint
  /// @throws std::invalid_argument if d_model differs.
  NormedOutput(L layer, RmsNorm<Scalar> norm, std::string name = "post_mlp_layernorm")
      : layer_(std::move(layer)), norm_(std::move(norm)), name_(std::move(name)) {
    require_equal(norm_.size(), layer_.d_model(), "NormedOutput: norm.size()");
  }

  Index d_model() const { return layer_.d_model(); }
  const L& layer() const { return layer_; }
  const RmsNorm<Scalar>& norm() const { return norm_; }
  const std::string& name() const { return name_; }

  /// To write.
  L& layer() { return layer_; }
  RmsNorm<Scalar>& norm() { return norm_; }

  /// As the layer's own.
  void forward(const ConstMatrixRef<Scalar>& x, MatrixRef<Scalar> y, Workspace<Scalar>& ws,
               ExecutorRef executor = Serial{}) const {
    if (is_padded(ws)) return forward_real_tokens(*this, x, y, ws, executor);
    layer_.forward(x, y, ws, executor);
    Workers workers = workers_of(ws, executor);
    norm_.apply(y, y, workers);
  }
  using ShortForwards<NormedOutput>::forward;

  template <class Visit>
  void visit_parameters(Visit& visit) {
    visit.in("", layer_);
    visit.in(name_, norm_);
  }

 private:
  L layer_;
  RmsNorm<Scalar> norm_;
  std::string name_;
};

}  // namespace moe::inline MOE_TARGET
