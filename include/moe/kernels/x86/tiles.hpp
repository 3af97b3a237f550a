/// @file  Products of tiles of bfloat16 pairs with the instructions of AMX.
#pragma once

#if defined(MOE_HAS_AMX)

#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdint>

#include "moe/core/types.hpp"
#include "moe/kernels/lanes.hpp"

namespace moe::inline MOE_TARGET::kernels {

inline constexpr bool has_tiles = true;

/// Whether the system lets this process use tiles. It is asked once.
inline bool pairs_pay() {
  constexpr long ask_for_permission = 0x1023, data_of_tiles = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  static const bool has_permission = syscall(SYS_arch_prctl, ask_for_permission, data_of_tiles) == 0;
  return has_permission;
}

/// While it lives, the calling thread has eight tiles of 16 rows of 64 bytes. Only where pairs_pay().
class TilesInUse {
 public:
  TilesInUse() {
    [[maybe_unused]] const bool may = pairs_pay();
    eigen_assert(may);
    struct alignas(64) {
      std::uint8_t palette = 1, start = 0, reserved[14] = {};
      std::uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      std::uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    } const shapes;
    asm volatile("ldtilecfg %0" : : "m"(shapes));  // g++'s intrinsic says that it reads eight bytes of the 64
  }
  ~TilesInUse() { _tile_release(); }
  TilesInUse(const TilesInUse&) = delete;
  TilesInUse& operator=(const TilesInUse&) = delete;
};

/// tile[32][V · 16] (+)= 32 rows · V blocks of 16 tokens, summed along the units, a multiple of 16, in order.
/// @param even, odd  rows 0 and 1; the next ones of each are `stride` units apart
/// @param block      [units][V · 16]
template <int V>
MOE_INLINE void add_pair_tiles(const std::uint32_t* even, const std::uint32_t* odd, Index stride,
                               const std::uint32_t* block, Index units, bool add, float* tile) {
  // Sums are tiles 0 to 3, rows 4 and 5, tokens 6 and 7.
  constexpr long width = V * 16, row_of_block = width * 4, two_rows_of_tile = 2 * row_of_block;
  const long next_row = stride * 4;
  float* const odd_rows = tile + width;
  asm volatile("" ::: "memory");  // compilers do not know that these instructions touch it
  if (add) {
    _tile_loadd(0, tile, two_rows_of_tile);
    _tile_loadd(1, odd_rows, two_rows_of_tile);
    if constexpr (V == 2) {
      _tile_loadd(2, tile + 16, two_rows_of_tile);
      _tile_loadd(3, odd_rows + 16, two_rows_of_tile);
    }
  } else {
    _tile_zero(0);
    _tile_zero(1);
    if constexpr (V == 2) {
      _tile_zero(2);
      _tile_zero(3);
    }
  }
  for (Index u = 0; u < units; u += 16) {
    _tile_loadd(4, even + u, next_row);
    _tile_loadd(5, odd + u, next_row);
    _tile_loadd(6, block + u * width, row_of_block);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 5, 6);
    if constexpr (V == 2) {
      _tile_loadd(7, block + u * width + 16, row_of_block);
      _tile_dpbf16ps(2, 4, 7);
      _tile_dpbf16ps(3, 5, 7);
    }
  }
  _tile_stored(0, tile, two_rows_of_tile);
  _tile_stored(1, odd_rows, two_rows_of_tile);
  if constexpr (V == 2) {
    _tile_stored(2, tile + 16, two_rows_of_tile);
    _tile_stored(3, odd_rows + 16, two_rows_of_tile);
  }
  asm volatile("" ::: "memory");
}

}  // namespace moe::inline MOE_TARGET::kernels

#endif
