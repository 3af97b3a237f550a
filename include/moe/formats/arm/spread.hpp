/// @file  Widens and looks up codes with the instructions of NEON.
#pragma once

#if defined(__aarch64__)

#include <arm_neon.h>

#include "moe/formats/codes.hpp"

namespace moe::inline MOE_TARGET::codes {

MOE_INLINE Lanes<float> floats_of(const std::int8_t* codes) {
  const int8x8_t some = vreinterpret_s8_u32(vdup_n_u32(kernels::load_as<std::uint32_t>(codes)));
  return (Lanes<float>)vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(some))));
}

MOE_INLINE TwoFloats first_halves(const std::byte* block) { return {half_at(block), half_at(block + 2)}; }

MOE_INLINE Bytes<16> look_up(const SixteenValues& values, const Bytes<16>& codes) {
  return (Bytes<16>)vqtbl1q_u8(kernels::load_as<uint8x16_t>(values.data()), (uint8x16_t)codes);
}

}  // namespace moe::inline MOE_TARGET::codes

#endif
