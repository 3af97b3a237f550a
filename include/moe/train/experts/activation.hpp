/// @file  Derivatives of the activations.
///
/// An activation of yours becomes trainable by a slope() beside it, a gated one by slopes().
#pragma once

#include <algorithm>
#include <cmath>
#include <type_traits>
#include <variant>

#include "moe/core/types.hpp"
#include "moe/experts/activation.hpp"
#include "moe/experts/any_activation.hpp"
#include "moe/kernels/elementary.hpp"
#include "moe/kernels/multiply_add.hpp"
#include "moe/kernels/vectors.hpp"

namespace moe::inline MOE_TARGET {

/// f'(x), element by element, for a fixed-size array of numbers.
template <class Array>
Array slope(const Silu&, const Array& x) {
  using Scalar = typename Array::Scalar;
  const Array cut = x.max(detail::lowest_logit<Scalar>).min(-detail::lowest_logit<Scalar>);  // beyond, it is 0 and 1
  const Array s = Scalar(1) / (Scalar(1) + detail::exp_of(-cut));
  Array slope = s;  // s + x·s·(1 − s)
  kernels::add_scaled(Array(cut * s), Array(Scalar(1) - s), slope);
  return slope;
}

/// 0 at 0.
template <class Array>
Array slope(const Relu&, const Array& x) {
  using Scalar = typename Array::Scalar;
  return (x > Scalar(0)).template cast<Scalar>();
}

template <class Array>
Array slope(const ReluSquared&, const Array& x) {
  using Scalar = typename Array::Scalar;
  return Scalar(2) * x.max(Scalar(0));
}

/// Φ(x) + x·φ(x).
template <class Array>
Array slope(const Gelu&, const Array& x) {
  using Scalar = typename Array::Scalar;
  if constexpr (std::is_same_v<Scalar, float>) {
    return x.unaryExpr(kernels::OnRegisters<kernels::GeluSlope>());
  } else {
    return x.unaryExpr([](Scalar v) {
      v = std::clamp(v, Scalar(-40), Scalar(40));  // beyond, it is 0 and 1; a NaN stays one
      const Scalar cdf = Scalar(0.5) * (Scalar(1) + std::erf(v * Scalar(0.70710678118654752440)));
      return kernels::multiply_add(v * std::exp(v * v * Scalar(-0.5)), Scalar(0.39894228040143267794), cdf);
    });
  }
}

template <class Array>
Array slope(const GeluTanh&, const Array& x) {
  using Scalar = typename Array::Scalar;
  if constexpr (std::is_same_v<Scalar, float>) {
    return x.unaryExpr(kernels::OnRegisters<kernels::GeluTanhSlope>());
  } else {
    return x.unaryExpr([](Scalar v) {
      constexpr auto a = Scalar(0.79788456080286535588), b = Scalar(0.044715);
      v = std::clamp(v, Scalar(-40), Scalar(40));
      const Scalar t = std::tanh(a * kernels::multiply_add(b * v * v, v, v));
      const Scalar du = a * kernels::multiply_add(3 * b * v, v, Scalar(1));
      return Scalar(0.5) * kernels::multiply_add(v * (Scalar(1) - t) * (Scalar(1) + t), du, Scalar(1) + t);
    });
  }
}

/// ∂f/∂gate and ∂f/∂up of f(gate, up), element by element.
template <class Act, class Array>
void slopes(const Glu<Act>& f, const Array& gate, const Array& up, Array& by_gate, Array& by_up) {
  by_gate = slope(f.act, gate) * up;
  by_up = f.act(gate);
}

namespace detail {

/// The slope of at_most() and of clamp(): 1 up to the limit, and at it.
template <class Array>
Array within(const Array& x, typename Array::Scalar highest) {
  return (x <= highest).template cast<typename Array::Scalar>();
}

}  // namespace detail

/// With c the cut gate and s = σ(αc): ∂/∂gate = (up + 1) · (s + αc·s·(1 − s)), ∂/∂up = c·s; 0 beyond the limits.
template <class Array>
void slopes(const GptOssGlu& f, const Array& gate, const Array& up, Array& by_gate, Array& by_up) {
  using Scalar = typename Array::Scalar;
  const auto limit = Scalar(f.limit), alpha = Scalar(f.alpha);
  const Array cut = detail::cut_gate(gate, limit, alpha);
  const Array s = Scalar(1) / (Scalar(1) + detail::exp_of(cut * -alpha));
  Array slope = s;  // s + αc·s·(1 − s)
  kernels::add_scaled(Array(alpha * cut * s), Array(Scalar(1) - s), slope);
  by_gate = (detail::clamp(up, limit) + Scalar(1)) * slope * detail::within(gate, limit);
  by_up = cut * s * detail::within(Array(up.abs()), limit);
}

template <class Act, class Array>
void slopes(const ClampedInputGlu<Act>& f, const Array& gate, const Array& up, Array& by_gate, Array& by_up) {
  using Scalar = typename Array::Scalar;
  const auto limit = Scalar(f.limit);
  const Array cut = detail::at_most(gate, limit);
  by_gate = slope(f.act, cut) * detail::clamp(up, limit) * detail::within(gate, limit);
  by_up = f.act(cut) * detail::within(Array(up.abs()), limit);
}

template <class Act, class Array>
void slopes(const ClampedOutputGlu<Act>& f, const Array& gate, const Array& up, Array& by_gate, Array& by_up) {
  using Scalar = typename Array::Scalar;
  const auto limit = Scalar(f.limit);
  const Array answer = f.act(gate);
  by_gate = slope(f.act, gate) * detail::clamp(up, limit) * detail::within(answer, limit);
  by_up = detail::at_most(answer, limit) * detail::within(Array(up.abs()), limit);
}

namespace detail {

/// The slope of softcap(): 1 − tanh(x / cap)².
template <class Array>
Array softcap_slope(const Array& x, typename Array::Scalar cap) {
  using Scalar = typename Array::Scalar;
  if (cap == 0) return Array::Constant(x.size(), Scalar(1));
  const Array t = softcap(x, cap) / cap;
  return (Scalar(1) - t) * (Scalar(1) + t);
}

}  // namespace detail

/// With c the capped gate and s = σ(gate): ∂/∂gate = (c'·s + c·s·(1 − s)) · c(up), ∂/∂up = c·s·c'(up).
template <class Array>
void slopes(const SoftcappedSwiGlu& f, const Array& gate, const Array& up, Array& by_gate, Array& by_up) {
  using Scalar = typename Array::Scalar;
  const auto gate_cap = Scalar(f.gate_cap), up_cap = Scalar(f.up_cap);
  const Array cut = gate.max(detail::lowest_logit<Scalar>);
  const Array bounded = cut.min(-detail::lowest_logit<Scalar>);  // beyond, 1 − s is 0
  const Array s = Scalar(1) / (Scalar(1) + detail::exp_of(-cut));
  Array slope = detail::softcap_slope(cut, gate_cap) * s;
  kernels::add_scaled(Array(detail::softcap(bounded, gate_cap) * s), Array(Scalar(1) - s), slope);
  by_gate = slope * detail::softcap(up, up_cap);
  by_up = detail::softcap(cut, gate_cap) * s * detail::softcap_slope(up, up_cap);
}

/// Those of the one that it is.
template <class Array>
[[gnu::noinline]] Array slope(const AnyActivation& f, const Array& x) {
  return std::visit([&](const auto& act) -> Array { return slope(act, x); }, f.held());
}
/// The slopes of the gated activation that it is, by gate and by up.
template <class Array>
[[gnu::noinline]] void slopes(const AnyGatedActivation& f, const Array& gate, const Array& up, Array& by_gate,
                              Array& by_up) {
  std::visit([&](const auto& act) { slopes(act, gate, up, by_gate, by_up); }, f.held());
}

}  // namespace moe::inline MOE_TARGET
