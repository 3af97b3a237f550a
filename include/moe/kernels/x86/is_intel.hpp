/// @file  Tells Intel's processors from others, where the same instructions take another time.
#pragma once

#if defined(__x86_64__)

#include <cpuid.h>

#include "moe/core/types.hpp"

namespace moe::inline MOE_TARGET::kernels {

/// It is asked once.
inline bool is_intel() {
  static const bool answer = [] {
    unsigned highest = 0, first = 0, third = 0, second = 0;
    return __get_cpuid(0, &highest, &first, &third, &second) != 0 && first == signature_INTEL_ebx;
  }();
  return answer;
}

}  // namespace moe::inline MOE_TARGET::kernels

#endif
