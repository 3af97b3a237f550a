/// @file  Sixteen floats in registers.
#pragma once

#include "moe/core/types.hpp"
#include "moe/kernels/lanes.hpp"

namespace moe::inline MOE_TARGET::kernels {

/// Sixteen floats, in as many registers as they take.
struct Sixteen {
  static constexpr int num_parts = 16 / lanes<float>;
  Lanes<float> part[num_parts];
};

MOE_INLINE Sixteen load_sixteen(const float* from) {
  Sixteen table;
  repeat<Sixteen::num_parts>(
      [&](int i) __attribute__((always_inline)) { table.part[i] = load_as<Lanes<float>>(from + i * lanes<float>); });
  return table;
}

/// f(…) of each register of a table.
template <class F>
MOE_INLINE Sixteen each_part(Sixteen table, const F& f) {
  repeat<Sixteen::num_parts>([&](int i) __attribute__((always_inline)) { table.part[i] = f(table.part[i]); });
  return table;
}

}  // namespace moe::inline MOE_TARGET::kernels
