/// @file  Loads weights of any type as a register of activations, exactly.
#pragma once

#include <cstdint>
#include <cstring>

#include "moe/core/types.hpp"
#include "moe/kernels/bfloat16_pairs.hpp"
#include "moe/kernels/lanes.hpp"

#if defined(__F16C__) || defined(__AVX512F__)
#include "moe/kernels/x86/float16.hpp"
#elif defined(__aarch64__)
#include "moe/kernels/arm/float16.hpp"
#else

namespace moe::inline MOE_TARGET::kernels {

/// Moves exponent and mantissa into place, then scales by 2^112, which is exact for subnormals as well.
MOE_INLINE Lanes<float> widen(const float16* from) {
  using Bits = IntLanes<std::uint32_t>;
  const Bits half = __builtin_convertvector(load_as<IntLanes<std::uint16_t>>(from), Bits);
  const Lanes<float> magnitude = as_floats((half & 0x7fffu) << 13) * 0x1p112f;
  const Bits special = (Bits)((half & 0x7c00u) == 0x7c00u);  // infinity and NaN keep the largest exponent
  return as_floats((Bits)magnitude | (special & 0x7f800000u) | ((half & 0x8000u) << 16));
}

}  // namespace moe::inline MOE_TARGET::kernels

#endif

namespace moe::inline MOE_TARGET::kernels {

/// Quick for a few; where many are widened, Exact<bfloat16> is quicker by taking two registers out of one.
MOE_INLINE Lanes<float> widen(const bfloat16* from) {
  return as_floats(__builtin_convertvector(load_as<IntLanes<std::uint16_t>>(from), Pairs) << 16);
}

MOE_INLINE Lanes<float> widen(const float* from) { return load_as<Lanes<float>>(from); }
MOE_INLINE Lanes<double> widen(const double* from) { return load_as<Lanes<double>>(from); }

}  // namespace moe::inline MOE_TARGET::kernels
