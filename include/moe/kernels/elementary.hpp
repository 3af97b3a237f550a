/// @file  Functions of floats that a C library would decide the bits of.
///
/// erff, tanhf, log1pf and expm1f change from one C library to the next (glibc 2.36 and 2.41 differ), and are computed
/// number by number. These are computed by whole registers, alike for every number in them. Their errors were
/// measured against double (tests/kernels/elementary_test.cpp). For doubles the C library is asked.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "moe/core/types.hpp"
#include "moe/kernels/lanes.hpp"
#include "moe/kernels/multiply_add.hpp"

namespace moe::inline MOE_TARGET::kernels {

namespace detail {

using Floats = Lanes<float>;
using FloatBits = IntLanes<std::int32_t>;

MOE_INLINE Floats all(float number) { return number - Floats{}; }

/// Σ_i coefficient[i] · xⁱ, where the last comes first.
template <class... Rest>
MOE_INLINE Floats polynomial(const Floats& x, float last, Rest... others) {
  Floats sum = all(last);
  ((sum = multiply_add(sum, x, all(others))), ...);
  return sum;
}

MOE_INLINE Floats magnitude(const Floats& x) { return (Floats)((FloatBits)x & 0x7fffffff); }
MOE_INLINE Floats at_most(const Floats& x, float limit) { return x > all(limit) ? all(limit) : x; }  // a NaN stays one
MOE_INLINE Floats positive_part(const Floats& x) { return x < Floats{} ? Floats{} : x; }
MOE_INLINE Floats with_sign_of(const Floats& x, const Floats& c) { return x < Floats{} ? -c : c; }

/// exp(a − b/2) for −87.3 ≤ a ≤ 0 and a b that is small beside 1: 2ⁿ·exp(r), |r| ≤ ln(2)/2. Cephes' polynomial.
MOE_INLINE Floats exp_of(const Floats& a, const Floats& b) {
  const Floats rounder = all(0x1.8p23f);  // what is added to it is rounded to an integer
  const Floats shifted = multiply_add(a, all(1.44269504f), rounder), n = shifted - rounder;
  Floats r = multiply_add(n, all(-0.693359375f), a);
  r = multiply_add(n, all(2.12194440e-4f), r);
  r = multiply_add(all(-0.5f), b, r);
  const Floats tail = polynomial(r, 1.9875691500e-4f, 1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f,
                                 1.6666665459e-1f, 5.0000001201e-1f);
  const Floats power = multiply_add(r * r, tail, r) + all(1);
  return (Floats)((FloatBits)power + ((FloatBits)shifted << 23));
}

/// exp(−c²/2) for 0 ≤ c ≤ 13.2: the upper half of c has a square without rounding.
MOE_INLINE Floats exp_of_half_square(const Floats& c) {
  const Floats upper = (Floats)((FloatBits)c & int(0xfffff000));
  return exp_of(upper * upper * -0.5f, (c - upper) * (c + upper));
}

inline constexpr float normal_limit = 13.2f;  // beyond, Φ(−c) is no normal number

/// Φ(−c) = t·P(t)·exp(−c²/2), t = 1 / (1 + 0.3c), for 0 ≤ c ≤ normal_limit: fitted with a relative error of 3.4e-9.
/// @param bell  exp(−c²/2)
MOE_INLINE Floats normal_tail(const Floats& c, const Floats& bell) {
  const Floats t = all(1) / multiply_add(all(0.3f), c, all(1));
  return bell * t *
         polynomial(t, -0.0205789916f, 0.112185203f, -0.227601454f, 0.190933302f, -0.0786829665f, 0.0957397744f,
                    0.0785413757f, 0.11020112f, 0.119576178f, 0.119686455f);
}

}  // namespace detail

/// gelu(x) = x·Φ(x) = max(x, 0) − |x|·Φ(−|x|), so that nothing cancels; 0 at −∞.
/// At most 8 units in the last place off for x ≥ −13, and 1e-37 below.
struct GeluOf {
  MOE_INLINE Lanes<float> operator()(const Lanes<float>& x) const {
    using namespace detail;
    const Floats size = magnitude(x), c = at_most(size, normal_limit);
    const Floats tail = normal_tail(c, exp_of_half_square(c));
    return multiply_add(-c, size > all(normal_limit) ? Floats{} : tail, positive_part(x));
  }
};

/// gelu'(x) = Φ(x) + x·φ(x), φ(x) = exp(−x²/2) / √(2π).
/// At most 2.5e-7 off.
struct GeluSlope {
  MOE_INLINE Lanes<float> operator()(const Lanes<float>& x) const {
    using namespace detail;
    const Floats c = at_most(magnitude(x), normal_limit), bell = exp_of_half_square(c);
    const Floats below = x < Floats{} ? all(1) : all(-1), one = x < Floats{} ? Floats{} : all(1);
    const Floats cdf = multiply_add(below, normal_tail(c, bell), one);
    return multiply_add(with_sign_of(x, c) * bell, all(0.398942280f), cdf);
  }
};

namespace detail {

inline constexpr float tanh_limit = 10;  // of |x|: beyond, σ(−2u) is no normal number

/// exp(−2u), u = √(2/π)·(c + 0.044715·c³), for 0 ≤ c ≤ tanh_limit.
MOE_INLINE Floats exp_of_tanh_gelu(const Floats& c) {
  return exp_of(-c * multiply_add(all(0.0713548163f), c * c, all(1.59576912f)), Floats{});
}

}  // namespace detail

/// x/2·(1 + tanh(u)) = max(x, 0) − |x|·σ(−2|u|), u = √(2/π)·(x + 0.044715·x³); 0 at −∞.
/// At most 16 units in the last place off for x ≥ −4 (18 where nothing is fused), and 1e-9 below.
struct GeluTanhOf {
  MOE_INLINE Lanes<float> operator()(const Lanes<float>& x) const {
    using namespace detail;
    const Floats size = magnitude(x), c = at_most(size, tanh_limit);
    const Floats m = exp_of_tanh_gelu(c), tail = m / (all(1) + m);
    return multiply_add(-c, size > all(tanh_limit) ? Floats{} : tail, positive_part(x));
  }
};

/// Its derivative: s + x·s·(1 − s)·2u', s = σ(2u), 2u' = 2·√(2/π)·(1 + 3·0.044715·x²).
/// At most 2.5e-7 off.
struct GeluTanhSlope {
  MOE_INLINE Lanes<float> operator()(const Lanes<float>& x) const {
    using namespace detail;
    const Floats c = at_most(magnitude(x), tanh_limit), m = exp_of_tanh_gelu(c), d = all(1) / (all(1) + m);
    const Floats s = x < Floats{} ? m * d : d;
    return multiply_add(with_sign_of(x, c) * m * d * d, multiply_add(all(0.214064449f), c * c, all(1.59576912f)), s);
  }
};

/// softplus(x) = log(1 + eˣ) = max(x, 0) + log(1 + z), z = exp(−|x|); log(1 + z) = 2·artanh(w), w = z / (2 + z).
/// At most 5 units in the last place off for x ≥ −86, and 1e-40 below.
struct SoftplusOf {
  MOE_INLINE Lanes<float> operator()(const Lanes<float>& x) const {
    using namespace detail;
    const Floats root = exp_of(at_most(magnitude(x), 174) * -0.5f, Floats{});  // √z: z itself may be subnormal
    const Floats w = root * root / multiply_add(root, root, all(2));
    const Floats series = polynomial(w * w, 0.140891671f, 0.139803022f, 0.200124547f, 0.333331585f, 1.0f);
    return multiply_add(w + w, series, positive_part(x));
  }
};

/// tanh(x): below 5/8 an odd polynomial, Cephes' one, and from there on (1 − m) / (1 + m), m = exp(−2|x|).
/// At most 2 units in the last place off.
struct TanhOf {
  MOE_INLINE Lanes<float> operator()(const Lanes<float>& x) const {
    using namespace detail;
    const Floats size = magnitude(x), square = x * x;
    const Floats m = exp_of(at_most(size, 10) * -2.0f, Floats{}), large = (all(1) - m) / (all(1) + m);
    const Floats series = polynomial(square, -5.70498872745e-3f, 2.06390887954e-2f, -5.37397155531e-2f,
                                     1.33314422036e-1f, -3.33332819422e-1f);
    return size >= all(0.625f) ? with_sign_of(x, large) : multiply_add(x * square, series, x);  // a NaN stays one
  }
};

/// cap·tanh(x / cap), or x itself where cap is 0.
struct SoftcapOf {
  float cap;

  MOE_INLINE Lanes<float> operator()(const Lanes<float>& x) const { return cap == 0 ? x : cap * TanhOf()(x / cap); }
};

namespace detail {

template <class To>
MOE_INLINE To packet_of(const auto& numbers, std::size_t at) {
  To packet;
  std::memcpy(&packet, reinterpret_cast<const char*>(&numbers) + at, sizeof packet);
  return packet;
}

/// A function object of Eigen's, on whole registers: packet by packet where it has packets, or else number by number.
template <class F, class Register>
MOE_INLINE Register by_packets(const F& function, const Register& x, const auto&... more) {
  using S = std::remove_cvref_t<decltype(x[0])>;
  Register result;
  if constexpr (Eigen::internal::functor_traits<F>::PacketAccess) {
    using Packet = typename Eigen::internal::find_best_packet<S, lanes<S>>::type;
    for (std::size_t at = 0; at < sizeof(Register); at += sizeof(Packet)) {
      const Packet some = function.packetOp(packet_of<Packet>(x, at), packet_of<Packet>(more, at)...);
      std::memcpy(reinterpret_cast<char*>(&result) + at, &some, sizeof some);
    }
  } else {
    for (int i = 0; i < lanes<S>; ++i) result[i] = function(x[i], more[i]...);
  }
  return result;
}

}  // namespace detail

/// exp(x) of a whole register, as Eigen has it. (Of what is left over at the end of an array Eigen takes the C
/// library's, which has other bits, and other limits: Eigen 3.4's own ends above 0 and below ∞.)
template <class Register>
MOE_INLINE Register exponential(const Register& x) {
  return detail::by_packets(Eigen::internal::scalar_exp_op<std::remove_cvref_t<decltype(x[0])>>(), x);
}

/// The same, as OnRegisters takes it.
template <class S>
struct ExpOf {
  MOE_INLINE Lanes<S> operator()(const Lanes<S>& x) const { return exponential(x); }
};

/// silu(x) = x·σ(x) = x / (1 + exp(−x)), where x is cut at `lowest`. A NaN stays one.
template <class S>
struct SiluOf {
  S lowest;

  MOE_INLINE Lanes<S> operator()(const Lanes<S>& x) const {
    // Eigen's max is one instruction, where g++ makes two of x < lowest ? lowest : x: a ninth of the time of all this.
    const Lanes<S> cut = detail::by_packets(Eigen::internal::scalar_max_op<S>(), x, Lanes<S>(lowest - Lanes<S>{}));
    return cut / (S(1) + exponential(Lanes<S>(-cut)));
  }
};

/// A function of whole registers as one of Eigen's expressions, in packets or number by number, with the same bits.
template <class F, class S = float>
struct OnRegisters {
  F function{};

  MOE_INLINE S operator()(S x) const { return function(x - Lanes<S>{})[0]; }

  template <class Packet>
  MOE_INLINE Packet packetOp(const Packet& x) const {
    static_assert(sizeof(Packet) <= sizeof(Lanes<S>));
    Lanes<S> in{};
    std::memcpy(&in, &x, sizeof x);
    const Lanes<S> out = function(in);
    Packet packet;
    std::memcpy(&packet, &out, sizeof packet);
    return packet;
  }
};

/// log(1 + eˣ), without overflow.
MOE_INLINE float softplus(float x) { return OnRegisters<SoftplusOf>()(x); }
inline double softplus(double x) { return std::max(x, 0.0) + std::log1p(std::exp(-std::abs(x))); }

}  // namespace moe::inline MOE_TARGET::kernels

template <class F, class S>
struct Eigen::internal::functor_traits<moe::kernels::OnRegisters<F, S>> {
  enum { Cost = 50, PacketAccess = packet_traits<S>::Vectorizable };
};
