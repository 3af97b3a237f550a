/// @file  A linear layer that stands around a group of experts.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "moe/core/check.hpp"
#include "moe/core/scratch.hpp"
#include "moe/core/types.hpp"
#include "moe/core/weight_stack.hpp"
#include "moe/kernels/matmul.hpp"
#include "moe/kernels/products.hpp"
#include "moe/runtime/workers.hpp"

namespace moe::inline MOE_TARGET {

/// y = W·x + b. The weight may be mapped, of any type, coded as well: it is used where it lies.
template <class W>
class Projection {
 public:
  using Scalar = ActivationScalar<W>;
  using WeightScalar = W;

  /// @param weight  one matrix, (out × in)
  /// @param bias    (out), or empty for none
  /// @throws std::invalid_argument unless it is one matrix, and the sizes fit.
  explicit Projection(WeightStack<W> weight, Vector<Scalar> bias = {})
      : weight_(std::move(weight)), bias_(std::move(bias)) {
    require_equal(weight_.num_experts(), 1, "Projection: weight.num_experts(), of matrices,");
    if (bias_.size() > 0) require_equal(bias_.size(), out(), "Projection: bias.size()");
  }

  /// The same with a weight of its own.
  explicit Projection(const Weight<W>& weight, Vector<Scalar> bias = {})
      : Projection(owned(std::vector{weight}), std::move(bias)) {}

  Index in() const { return weight_.cols(); }           ///< Columns of W.
  Index out() const { return weight_.rows(); }          ///< Rows of W.
  decltype(auto) weight() const { return weight_[0]; }  ///< W where it lies: a WeightMap, or a QuantizedMatrix.
  const WeightStack<W>& stack() const { return weight_; }
  const Vector<Scalar>& bias() const { return bias_; }

  /// To write.
  /// @throws std::invalid_argument if the weight is mapped.
  auto owned_weight() { return weight_.owned(0); }
  auto bias() { return to_write(bias_); }

  /// x (in × n_tokens), y (out × n_tokens).
  /// @throws std::invalid_argument if a number of rows is another.
  void compute(const ConstMatrixRef<Scalar>& x, MatrixRef<Scalar> y, Workers& workers) const {
    require_equal(x.rows(), in(), "Projection: x.rows()");
    require_equal(y.rows(), out(), "Projection: y.rows()");
    kernels::with_arithmetic<W>(
        workers.numerics(), [&]<class A>(A) { kernels::matmul_by<A>(weight(), x, y, workers); }, weight_);
    if (bias_.size() == 0) return;
    workers.for_each_band(y.cols(), 16, [&](Index first, Index last, Scratch&) {
      for (Index t = first; t < last; ++t) y.col(t) += bias_;
    });
  }

  template <class Visit>
  void visit_parameters(Visit& visit) {
    weight_.show(0, "weight", visit);
    visit("bias", bias_);
  }

 private:
  WeightStack<W> weight_;
  Vector<Scalar> bias_;
};

/// The same with the numbers that a coded weight stands for: in float to the bit, in W rounded to it.
template <class W>
Projection<W> dequantized(const Projection<Quantized>& projection) {
  return Projection<W>(dequantized<W>(projection.stack()), projection.bias());
}

}  // namespace moe::inline MOE_TARGET
