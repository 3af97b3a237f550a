/// @file  Element-wise nonlinearities, written as Eigen expressions so that they vectorise and fuse.
#pragma once

#include <algorithm>
#include <cmath>
#include <type_traits>

#include "moe/core/concepts.hpp"
#include "moe/core/types.hpp"
#include "moe/kernels/elementary.hpp"
#include "moe/kernels/multiply_add.hpp"

namespace moe::inline MOE_TARGET {

namespace detail {

/// Below this σ is taken as here, where it is 6e-39 (of doubles 3e-308): further down exp(−x) would be infinite, or, of
/// Eigen 3.4, stay where it is, so that x·σ(x) grew again.
template <class Scalar>
inline constexpr Scalar lowest_logit = std::is_same_v<Scalar, double> ? -708 : -88;

/// exp(x) with the same bits wherever a number stands.
template <class X>
auto exp_of(const Eigen::ArrayBase<X>& x) {
  using Scalar = typename X::Scalar;
  return x.derived().unaryExpr(kernels::OnRegisters<kernels::ExpOf<Scalar>, Scalar>());
}

}  // namespace detail

/// silu(x) = x·σ(x), also called swish; near 0 (6e-37 off) at −∞. Elfwing et al. 2017, arXiv:1702.03118.
struct Silu {
  bool operator==(const Silu&) const = default;
  template <class X>
  auto operator()(const Eigen::ArrayBase<X>& x) const {
    using Scalar = typename X::Scalar;
    using OfRegister = kernels::SiluOf<Scalar>;
    return x.derived().unaryExpr(kernels::OnRegisters<OfRegister, Scalar>{{detail::lowest_logit<Scalar>}});
  }
};

/// relu(x) = max(0, x).
struct Relu {
  bool operator==(const Relu&) const = default;
  template <class X>
  auto operator()(const Eigen::ArrayBase<X>& x) const {
    return x.derived().max(typename X::Scalar(0));
  }
};

/// relu(x)². So et al. 2021, "Primer", arXiv:2109.08668; Nemotron's.
struct ReluSquared {
  bool operator==(const ReluSquared&) const = default;
  template <class X>
  auto operator()(const Eigen::ArrayBase<X>& x) const {
    return x.derived().max(typename X::Scalar(0)).square();
  }
};

/// gelu(x) = x·Φ(x) = x/2·(1 + erf(x/√2)). Hendrycks & Gimpel 2016, arXiv:1606.08415.
struct Gelu {
  bool operator==(const Gelu&) const = default;
  template <class X>
  auto operator()(const Eigen::ArrayBase<X>& x) const {
    using Scalar = typename X::Scalar;
    if constexpr (std::is_same_v<Scalar, float>) {
      return x.derived().unaryExpr(kernels::OnRegisters<kernels::GeluOf>());
    } else {
      return x.derived().unaryExpr([](Scalar v) {
        v = std::max(v, Scalar(-40));  // where it is 0; a NaN stays one
        return Scalar(0.5) * v * (Scalar(1) + std::erf(v * Scalar(0.70710678118654752440)));
      });
    }
  }
};

/// The tanh approximation of gelu, ibid. §2: x/2·(1 + tanh(√(2/π)·(x + 0.044715·x³))). Checkpoints:
/// "gelu_pytorch_tanh".
struct GeluTanh {
  bool operator==(const GeluTanh&) const = default;
  template <class X>
  auto operator()(const Eigen::ArrayBase<X>& x) const {
    using Scalar = typename X::Scalar;
    if constexpr (std::is_same_v<Scalar, float>) {
      return x.derived().unaryExpr(kernels::OnRegisters<kernels::GeluTanhOf>());
    } else {
      return x.derived().unaryExpr([](Scalar v) {
        v = std::max(v, Scalar(-40));
        const Scalar cubic = kernels::multiply_add(Scalar(0.044715) * v * v, v, v);
        return Scalar(0.5) * v * (Scalar(1) + std::tanh(Scalar(0.79788456080286535588) * cubic));
      });
    }
  }
};

/// act(gate) ⊙ up: the hidden layer of a gated FFN. Shazeer 2020, "GLU Variants Improve Transformer", arXiv:2002.05202.
template <class Act>
struct Glu {
  Act act{};

  bool operator==(const Glu&) const = default;

  template <class G, class U>
  auto operator()(const Eigen::ArrayBase<G>& gate, const Eigen::ArrayBase<U>& up) const {
    return act(gate.derived()) * up.derived();
  }
};

using SwiGlu = Glu<Silu>;         ///< Shazeer 2020, §2: of Llama, Mixtral, Qwen, DeepSeek.
using GeGlu = Glu<Gelu>;          ///< Shazeer 2020, §2, with the exact gelu.
using GeGluTanh = Glu<GeluTanh>;  ///< The same with gelu's approximation: Gemma.
using ReGlu = Glu<Relu>;          ///< Shazeer 2020, §2.

namespace detail {

/// min(x, limit), and x cut to [−limit, limit]. A NaN stays one.
template <class X>
auto at_most(const Eigen::ArrayBase<X>& x, typename X::Scalar limit) {
  return x.derived().min(limit);
}
template <class X>
auto clamp(const Eigen::ArrayBase<X>& x, typename X::Scalar limit) {
  return x.derived().min(limit).max(-limit);
}

/// The gate of GptOssGlu: cut at `limit`, and where σ(alpha·gate) is all but 0.
template <class X>
auto cut_gate(const Eigen::ArrayBase<X>& gate, typename X::Scalar limit, typename X::Scalar alpha) {
  return gate.derived().min(limit).max(lowest_logit<typename X::Scalar> / std::abs(alpha));
}

}  // namespace detail

/// (up + 1) ⊙ gate·σ(alpha·gate), of gate cut above at `limit`, and up on both sides. The gate has no lower bound.
/// OpenAI 2025, gpt-oss model card, arXiv:2508.10925, and its reference implementation.
struct GptOssGlu {
  float limit = 7;
  float alpha = 1.702F;

  bool operator==(const GptOssGlu&) const = default;

  template <class G, class U>
  auto operator()(const Eigen::ArrayBase<G>& gate, const Eigen::ArrayBase<U>& up) const {
    using Scalar = typename G::Scalar;
    const auto cut = detail::cut_gate(gate, Scalar(limit), Scalar(alpha));
    return (detail::clamp(up, Scalar(limit)) + Scalar(1)) * cut / (Scalar(1) + detail::exp_of(cut * -Scalar(alpha)));
  }
};

/// act(gate) ⊙ up of gate cut above at `limit`, and up on both sides: DeepSeek-V4's, with Silu and 10.
template <class Act>
struct ClampedInputGlu {
  float limit = 10;
  Act act{};

  bool operator==(const ClampedInputGlu&) const = default;

  template <class G, class U>
  auto operator()(const Eigen::ArrayBase<G>& gate, const Eigen::ArrayBase<U>& up) const {
    using Scalar = typename G::Scalar;
    return act(detail::at_most(gate, Scalar(limit))) * detail::clamp(up, Scalar(limit));
  }
};

/// act(gate), cut above at `limit`, ⊙ up, cut on both sides: Step-3.5's, with Silu.
template <class Act>
struct ClampedOutputGlu {
  float limit = 7;
  Act act{};

  bool operator==(const ClampedOutputGlu&) const = default;

  template <class G, class U>
  auto operator()(const Eigen::ArrayBase<G>& gate, const Eigen::ArrayBase<U>& up) const {
    using Scalar = typename G::Scalar;
    return detail::at_most(act(gate.derived()), Scalar(limit)) * detail::clamp(up, Scalar(limit));
  }
};

namespace detail {

/// cap·tanh(x / cap), or x itself where cap is 0.
template <class X>
auto softcap(const Eigen::ArrayBase<X>& x, typename X::Scalar cap) {
  using Scalar = typename X::Scalar;
  if constexpr (std::is_same_v<Scalar, float>) {
    return x.derived().unaryExpr(kernels::OnRegisters<kernels::SoftcapOf>{{cap}});
  } else {
    return x.derived().unaryExpr([cap](Scalar v) { return cap == 0 ? v : cap * std::tanh(v / cap); });
  }
}

}  // namespace detail

/// c(gate, gate_cap)·σ(gate) ⊙ c(up, up_cap), c(x, cap) = cap·tanh(x / cap): SwiGLU whose gate and up are bounded,
/// softly. Kimi K3's SiTU-GLU (β and λ are the caps) and Inkling 2's; a cap of 0 is none.
struct SoftcappedSwiGlu {
  float gate_cap = 4;
  float up_cap = 25;

  bool operator==(const SoftcappedSwiGlu&) const = default;

  template <class G, class U>
  auto operator()(const Eigen::ArrayBase<G>& gate, const Eigen::ArrayBase<U>& up) const {
    using Scalar = typename G::Scalar;
    const auto cut = gate.derived().max(detail::lowest_logit<Scalar>);
    return detail::softcap(cut, Scalar(gate_cap)) / (Scalar(1) + detail::exp_of(-cut)) *
           detail::softcap(up, Scalar(up_cap));
  }
};

}  // namespace moe::inline MOE_TARGET
