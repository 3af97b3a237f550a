/// @file  Vectors multiplied and added, with bits that depend on no place in memory.
///
/// Eigen sums and adds in packets where memory is aligned and number by number elsewhere, and leaves it to the compiler
/// which of these are fused: see multiply_add.hpp.
#pragma once

#include <type_traits>

#include "moe/core/types.hpp"
#include "moe/kernels/lanes.hpp"
#include "moe/kernels/multiply_add.hpp"

namespace moe::inline MOE_TARGET::kernels {

/// Σ_i a[i] · b[i], in an order that the size alone decides.
template <class S>
MOE_KERNEL S dot(const S* a, const S* b, Index size) {
  using Register = Lanes<S>;
  constexpr int L = lanes<S>, together = 4;
  Register sum[together] = {};
  Index i = 0;
  for (; i + together * L <= size; i += together * L) {
    unroll<together>([&](auto k) __attribute__((always_inline)) {
      sum[k] = multiply_add(load_as<Register>(a + i + k * L), load_as<Register>(b + i + k * L), sum[k]);
    });
  }
  for (; i + L <= size; i += L) sum[0] = multiply_add(load_as<Register>(a + i), load_as<Register>(b + i), sum[0]);
  S rest = 0;
  for (; i < size; ++i) rest = multiply_add(a[i], b[i], rest);
  S lane[L];
  store(lane, (sum[0] + sum[1]) + (sum[2] + sum[3]));
  for (int half = L / 2; half > 0; half /= 2) {
    for (int l = 0; l < half; ++l) lane[l] += lane[l + half];
  }
  return lane[0] + rest;
}

/// y[i] += weight · x[i].
template <class S>
MOE_KERNEL void add_scaled(S weight, const S* x, S* y, Index size) {
  using Register = Lanes<S>;
  const Register weights = weight - Register{};  // the same number in each lane
  Index i = 0;
  for (; i + lanes<S> <= size; i += lanes<S>)
    store(y + i, multiply_add(weights, load_as<Register>(x + i), load_as<Register>(y + i)));
  for (; i < size; ++i) y[i] = multiply_add(weight, x[i], y[i]);
}

/// y[i] += weight[i] · x[i].
template <class S>
MOE_KERNEL void add_scaled(const S* weight, const S* x, S* y, Index size) {
  using Register = Lanes<S>;
  Index i = 0;
  for (; i + lanes<S> <= size; i += lanes<S>)
    store(y + i, multiply_add(load_as<Register>(weight + i), load_as<Register>(x + i), load_as<Register>(y + i)));
  for (; i < size; ++i) y[i] = multiply_add(weight[i], x[i], y[i]);
}

/// The same for Eigen's vectors and arrays, whose numbers lie side by side.
template <class A, class B>
typename A::Scalar dot(const Eigen::DenseBase<A>& a, const Eigen::DenseBase<B>& b) {
  eigen_assert(a.size() == b.size() && a.derived().innerStride() == 1 && b.derived().innerStride() == 1);
  return dot(a.derived().data(), b.derived().data(), a.size());
}

/// y += weight · x, of a number or as many as x has.
template <class W, class X, class Y>
void add_scaled(const W& weight, const Eigen::DenseBase<X>& x, Y&& y) {
  eigen_assert(x.size() == y.size() && x.derived().innerStride() == 1 && y.innerStride() == 1);
  if constexpr (std::is_arithmetic_v<W>) {
    add_scaled(weight, x.derived().data(), y.data(), x.size());
  } else {
    eigen_assert(weight.size() == x.size() && weight.innerStride() == 1);
    add_scaled(weight.data(), x.derived().data(), y.data(), x.size());
  }
}

}  // namespace moe::inline MOE_TARGET::kernels
