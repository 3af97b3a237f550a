/// @file  Looks numbers up with the byte tables of NEON.
#pragma once

#if defined(__aarch64__)

#include <arm_neon.h>

#include "moe/kernels/lanes.hpp"
#include "moe/kernels/sixteen.hpp"

namespace moe::inline MOE_TARGET::kernels {

MOE_INLINE Lanes<float> lookup(const Sixteen& table, const Pairs& index) {
  const uint8x16x4_t bytes = {
      {(uint8x16_t)table.part[0], (uint8x16_t)table.part[1], (uint8x16_t)table.part[2], (uint8x16_t)table.part[3]}};
  const Pairs places = (index & 15U) * 0x04040404U + 0x03020100U;
  return (Lanes<float>)vqtbl4q_u8(bytes, (uint8x16_t)places);
}

}  // namespace moe::inline MOE_TARGET::kernels

#endif
