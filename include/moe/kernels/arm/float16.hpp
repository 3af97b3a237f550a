/// @file  Widens float16 with the instruction of NEON.
#pragma once

#if defined(__aarch64__)

#include <arm_neon.h>

#include "moe/kernels/lanes.hpp"

namespace moe::inline MOE_TARGET::kernels {

MOE_INLINE Lanes<float> widen(const float16* from) { return (Lanes<float>)vcvt_f32_f16(load_as<float16x4_t>(from)); }

}  // namespace moe::inline MOE_TARGET::kernels

#endif
