/// @file  Root mean square normalisation.
#pragma once

#include <cmath>
#include <string>
#include <utility>

#include "moe/core/check.hpp"
#include "moe/core/scratch.hpp"
#include "moe/core/types.hpp"
#include "moe/kernels/vectors.hpp"

namespace moe::inline MOE_TARGET {

/// Where the gain is multiplied in: after the norm, as nearly all models do, or before it, as Muse Spark does after its
/// experts.
enum class GainOn { output, input };

struct RmsNormOptions {
  double epsilon = 1e-6;
  double offset = 0;  // 1 where checkpoints store how far gains are from 1: Gemma's and Muse Spark's "1 + weight"
  double factor = 1;  // of all gains
  GainOn gain_on = GainOn::output;
};

/// y = x / √(mean(x²) + epsilon) ⊙ g, or with GainOn::input y = u / √(mean(u²) + epsilon) of u = x ⊙ g, where
/// g = factor · (offset + gain).
/// Zhang & Sennrich 2019, "Root Mean Square Layer Normalization", arXiv:1910.07467.
template <class Scalar_>
class RmsNorm {
 public:
  using Scalar = Scalar_;

  /// @param gain  (size)
  /// @param who   what errors begin with
  /// @throws std::invalid_argument unless epsilon ≥ 0.
  explicit RmsNorm(Vector<Scalar> gain, const RmsNormOptions& options = {}, const std::string& who = "RmsNorm: ")
      : gain_(std::move(gain)), options_(options) {
    require(options.epsilon >= 0, who + "epsilon is " + std::to_string(options.epsilon) + ", expected 0 or more");
  }

  Index size() const { return gain_.size(); }
  const Vector<Scalar>& gain() const { return gain_; }
  auto gain() { return to_write(gain_); }
  const RmsNormOptions& options() const { return options_; }

  /// g of one number of a token.
  Scalar gain_of(Index i) const { return Scalar(options_.factor) * (Scalar(options_.offset) + gain_(i)); }

  /// √(mean(x²) + epsilon) of `size` numbers; 1 where that is 0, so that 0 stays 0.
  Scalar divisor(const Scalar* x) const {
    const Scalar rms = std::sqrt(kernels::dot(x, x, size()) / Scalar(size()) + Scalar(options_.epsilon));
    return rms == 0 ? Scalar(1) : rms;
  }

  /// y = norm(x) of one token, which may be the same memory.
  void operator()(const Scalar* x, Scalar* y) const {
    if (options_.gain_on == GainOn::input) {
      for (Index i = 0; i < size(); ++i) y[i] = x[i] * gain_of(i);
      const Scalar r = divisor(y);
      for (Index i = 0; i < size(); ++i) y[i] /= r;
    } else {
      const Scalar r = divisor(x);
      for (Index i = 0; i < size(); ++i) y[i] = x[i] * gain_of(i) / r;
    }
  }

  /// The same of all columns, split over the workers (a Workers: who they are is not known down here). x and y (size ×
  /// n_tokens) may be the same memory.
  /// @throws std::invalid_argument if x or y has another number of rows.
  template <class Workers>
  void apply(const ConstMatrixRef<Scalar>& x, MatrixRef<Scalar> y, Workers& workers) const {
    require_equal(x.rows(), size(), "RmsNorm: x.rows()");
    require_equal(y.rows(), size(), "RmsNorm: y.rows()");
    workers.for_each_band(x.cols(), 16, [&](Index first, Index last, Scratch&) {
      for (Index t = first; t < last; ++t) {
        (*this)(x.data() + t * x.outerStride(), y.data() + t * y.outerStride());
      }
    });
  }

  template <class Visit>
  void visit_parameters(Visit& visit) {
    visit("weight", gain_);
  }

 private:
  Vector<Scalar> gain_;
  RmsNormOptions options_;
};

}  // namespace moe::inline MOE_TARGET
