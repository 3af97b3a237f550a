/// @file  Gradients of root mean square normalisation.
#pragma once

#include "moe/core/scratch.hpp"
#include "moe/core/types.hpp"
#include "moe/kernels/lanes.hpp"
#include "moe/kernels/multiply_add.hpp"
#include "moe/kernels/rms_norm.hpp"
#include "moe/kernels/vectors.hpp"
#include "moe/runtime/workers.hpp"
#include "moe/train/gradient_shape.hpp"

namespace moe::inline MOE_TARGET {

/// Through u ↦ v = u / r, r = √(mean(u²) + epsilon), before or after a gain g. With a = ∂L/∂v,
///   ∂L/∂u = a/r − u (u·a) / (size r³),
///   of v ⊙ g:  a = g ⊙ ∂L/∂y, ∂L/∂x = ∂L/∂u,       ∂L/∂gain = factor · Σ ∂L/∂y ⊙ v
///   of x ⊙ g:  a = ∂L/∂y,     ∂L/∂x = g ⊙ ∂L/∂u,   ∂L/∂gain = factor · Σ ∂L/∂u ⊙ x
/// @param x       (size × n_tokens), as norm.apply() read it
/// @param d_y     (size × n_tokens) ∂L/∂y
/// @param d_x     (size × n_tokens) ∂L/∂x; added to
/// @param d_gain  (size) ∂L/∂gain; added to; or empty for one that does not learn
/// @throws std::invalid_argument naming both shapes if that of d_gain is another.
template <class Scalar>
void backward(const RmsNorm<Scalar>& norm, const ConstMatrixRef<Scalar>& x, const ConstMatrixRef<Scalar>& d_y,
              MatrixRef<Scalar> d_x, Eigen::Map<Vector<Scalar>> d_gain, Workers& workers) {
  using kernels::multiply_add;
  const Index size = norm.size(), n = x.cols();
  const bool on_input = norm.options().gain_on == GainOn::input;
  Scalar* const one_by_r = workers.shared().template array<Scalar>(n);
  Scalar* const along = workers.shared().template array<Scalar>(n);  // (u·a) / (size r³) of each token
  // ∂L/∂u of one number of a token
  const auto d_u = [&](Index t, Scalar u, Scalar a) { return multiply_add(-along[t], u, one_by_r[t] * a); };

  workers.for_each_band(n, 16, [&](Index first, Index last, Scratch& scratch) {
    Scalar* const u = scratch.array<Scalar>(size);
    Scalar* const a = scratch.array<Scalar>(size);
    for (Index t = first; t < last; ++t) {
      for (Index i = 0; i < size; ++i) {
        u[i] = on_input ? x(i, t) * norm.gain_of(i) : x(i, t);
        a[i] = on_input ? d_y(i, t) : d_y(i, t) * norm.gain_of(i);
      }
      const Scalar r = norm.divisor(u);
      one_by_r[t] = 1 / r;
      along[t] = kernels::dot(u, a, size) / (Scalar(size) * r * r * r);
      for (Index i = 0; i < size; ++i) {
        const Scalar d = d_u(t, u[i], a[i]);
        d_x(i, t) = on_input ? multiply_add(norm.gain_of(i), d, d_x(i, t)) : d_x(i, t) + d;
      }
    }
  });
  if (d_gain.size() == 0) return;
  require_gradient(d_gain, size, 1, "the gain of a norm");
  const auto factor = Scalar(norm.options().factor);
  workers.for_each_band(size, kernels::lanes<Scalar>, [&](Index first, Index last, Scratch&) {
    for (Index t = 0; t < n; ++t) {
      for (Index i = first; i < last; ++i) {
        const Scalar slope = on_input ? d_u(t, x(i, t) * norm.gain_of(i), d_y(i, t)) : d_y(i, t) * one_by_r[t];
        d_gain(i) = multiply_add(factor * x(i, t), slope, d_gain(i));
      }
    }
  });
}

}  // namespace moe::inline MOE_TARGET
