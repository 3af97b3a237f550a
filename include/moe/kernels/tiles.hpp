/// @file  Products of bfloat16 pairs a tile at a time: 16 rows by 16 tokens, 16 pairs deep.
#pragma once

#include "moe/core/types.hpp"
#include "moe/kernels/bfloat16_pairs.hpp"

#if defined(MOE_HAS_AMX)
#include "moe/kernels/x86/tiles.hpp"
#else

#include "moe/kernels/x86/is_intel.hpp"

namespace moe::inline MOE_TARGET::kernels {

/// Whether this processor has tiles.
inline constexpr bool has_tiles = false;

struct TilesInUse {};

/// Whether pairs are multiplied faster than floats. Intel's processors take twice as long for a product, but in tiles.
inline bool pairs_pay() {
#if defined(__AVX512BF16__)
  return !is_intel();
#else
  return has_fast_pairs;
#endif
}

}  // namespace moe::inline MOE_TARGET::kernels

#endif
