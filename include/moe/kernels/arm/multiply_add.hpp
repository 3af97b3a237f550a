/// @file  Fused multiplication and addition with the instructions of NEON.
#pragma once

#if defined(__aarch64__)

#include <arm_neon.h>

#include "moe/kernels/lanes.hpp"

namespace moe::inline MOE_TARGET::kernels {

MOE_INLINE Lanes<float> multiply_add(const Lanes<float>& a, const Lanes<float>& b, const Lanes<float>& c) {
  return (Lanes<float>)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
}

MOE_INLINE Lanes<double> multiply_add(const Lanes<double>& a, const Lanes<double>& b, const Lanes<double>& c) {
  return (Lanes<double>)vfmaq_f64((float64x2_t)c, (float64x2_t)a, (float64x2_t)b);
}

}  // namespace moe::inline MOE_TARGET::kernels

#endif
