/// @file  Element-wise nonlinearities, written as Eigen expressions so that they vectorise and fuse.
#pragma once

#include <cmath>

#include "moe/concepts.hpp"
#include "moe/types.hpp"

namespace moe {

/// silu(x) = x·σ(x), also called swish. Elfwing et al. 2017, arXiv:1702.03118.
struct Silu {
  template <class X>
  auto operator()(const Eigen::ArrayBase<X>& x) const {
    using Scalar = typename X::Scalar;
    return x.derived() / (Scalar(1) + (-x.derived()).exp());
  }
};

/// relu(x) = max(0, x).
struct Relu {
  template <class X>
  auto operator()(const Eigen::ArrayBase<X>& x) const {
    return x.derived().max(typename X::Scalar(0));
  }
};

/// gelu(x) = x·Φ(x) = x/2·(1 + erf(x/√2)). Hendrycks & Gimpel 2016, arXiv:1606.08415.
struct Gelu {
  template <class X>
  auto operator()(const Eigen::ArrayBase<X>& x) const {
    using Scalar = typename X::Scalar;
    return x.derived().unaryExpr(
        [](Scalar v) { return Scalar(0.5) * v * (Scalar(1) + std::erf(v * Scalar(0.70710678118654752440))); });
  }
};

/// The tanh approximation of gelu, ibid. §2: x/2·(1 + tanh(√(2/π)·(x + 0.044715·x³))). Checkpoints:
/// "gelu_pytorch_tanh".
struct GeluTanh {
  template <class X>
  auto operator()(const Eigen::ArrayBase<X>& x) const {
    using Scalar = typename X::Scalar;
    const auto& v = x.derived();
    return Scalar(0.5) * v * (Scalar(1) + (Scalar(0.79788456080286535588) * (v + Scalar(0.044715) * v * v * v)).tanh());
  }
};

/// act(gate) ⊙ up: the hidden layer of a gated FFN. Shazeer 2020, "GLU Variants Improve Transformer", arXiv:2002.05202.
template <class Act>
struct Glu {
  Act act{};

  template <class G, class U>
  auto operator()(const Eigen::ArrayBase<G>& gate, const Eigen::ArrayBase<U>& up) const {
    return act(gate.derived()) * up.derived();
  }
};

using SwiGlu = Glu<Silu>;
using GeGlu = Glu<Gelu>;
using GeGluTanh = Glu<GeluTanh>;
using ReGlu = Glu<Relu>;

}  // namespace moe
