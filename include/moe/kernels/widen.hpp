/// @file  Loads weights of any type as a register of activations, exactly.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "moe/kernels/lanes.hpp"
#include "moe/types.hpp"

#if defined(__F16C__)
#include <immintrin.h>
#endif

namespace moe::kernels {

namespace detail {
template <class T>
using IntLanes = typename VectorOf<T, sizeof(T) * static_cast<std::size_t>(lanes<float>)>::type;

template <class V>
MOE_INLINE Lanes<float> as_floats(const V& bits) {
  static_assert(sizeof(V) == sizeof(Lanes<float>));
  Lanes<float> v;
  std::memcpy(&v, &bits, sizeof v);
  return v;
}
}  // namespace detail

/// bfloat16 is the upper half of a float.
MOE_INLINE Lanes<float> widen(const bfloat16* from) {
  const auto bits = load_as<detail::IntLanes<std::uint16_t>>(from);
  return detail::as_floats(__builtin_convertvector(bits, detail::IntLanes<std::uint32_t>) << 16);
}

/// float16: moves exponent and mantissa into place, then scales by 2^112, which is exact for subnormals as well.
MOE_INLINE Lanes<float> widen(const float16* from) {
#if defined(__AVX512F__)
  // maskz: g++ 12 warns about the plain form's own undefined register
  return (Lanes<float>)_mm512_maskz_cvtph_ps(0xffff, load_as<__m256i>(from));
#elif defined(__F16C__)
  return (Lanes<float>)_mm256_cvtph_ps(load_as<__m128i>(from));
#else
  using Bits = detail::IntLanes<std::uint32_t>;
  const Bits half = __builtin_convertvector(load_as<detail::IntLanes<std::uint16_t>>(from), Bits);
  const Lanes<float> magnitude = detail::as_floats((half & 0x7fffu) << 13) * 0x1p112f;
  Bits bits;
  std::memcpy(&bits, &magnitude, sizeof bits);
  const Bits special = (Bits)((half & 0x7c00u) == 0x7c00u);  // infinity and NaN keep the largest exponent
  return detail::as_floats(bits | (special & 0x7f800000u) | ((half & 0x8000u) << 16));
#endif
}

MOE_INLINE Lanes<float> widen(const float* from) { return load_as<Lanes<float>>(from); }
MOE_INLINE Lanes<double> widen(const double* from) { return load_as<Lanes<double>>(from); }

}  // namespace moe::kernels
