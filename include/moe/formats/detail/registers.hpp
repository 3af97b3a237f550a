/// @file  Rows of blocks whose codes are multiplied in registers.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "moe/core/quantized.hpp"
#include "moe/formats/codes.hpp"
#include "moe/formats/spread.hpp"
#include "moe/kernels/register_products.hpp"
#include "moe/kernels/shuffle.hpp"

#if defined(__AVX512VNNI__) && defined(__AVX512BW__) && defined(__AVX512VL__)
#include "moe/formats/x86/wide.hpp"
#else

namespace moe::inline MOE_TARGET::codes {

/// Whether registers hold 64 codes here.
inline constexpr bool has_wide = false;
struct Wide;

}  // namespace moe::inline MOE_TARGET::codes

#endif

namespace moe::inline MOE_TARGET::codes {

/// Whether a block says how 64 of its codes become a register, as a template over who can do that, Wide:
///
///   static constexpr int offset = 8;      // or else codes have signs: number = scale · (code − offset) + minimum
///   template <int k, class Wide>          // numbers [64 k, 64 k + 64) from `block` on
///   static Bytes<64> wide_codes(const std::byte* block);
///
/// and, if it has 32 numbers, the scales of the two blocks there:
///
///   template <class Wide>
///   static Lanes<float> wide_scales(const std::byte* block);
///   template <class Wide>                 // and if it has some, those of four blocks, then zeros
///   static Lanes<float> wide_minima(const std::byte* block);
///
/// or else those of its groups, and their minima if it has some:
///
///   template <class Wide>
///   static void put_scales(const std::byte* block, GroupScales& scales, GroupScales& minima);
template <class Block>
concept WideBlock = has_wide && requires(const std::byte* at) { Block::template wide_codes<0, Wide>(at); };

/// Four blocks of 32 numbers in registers.
template <class Block>
struct FourWideBlocks {
  Bytes<64> its_codes[2];
  Lanes<float> its_scales[2], its_minima = {};

  MOE_INLINE explicit FourWideBlocks(const std::byte* blocks) {
    kernels::unroll<2>([&](auto k) __attribute__((always_inline)) {
      its_codes[k] = Block::template wide_codes<0, Wide>(blocks + k * 2 * Block::bytes);
      its_scales[k] = Block::template wide_scales<Wide>(blocks + k * 2 * Block::bytes);
    });
    if constexpr (Block::has_minima) its_minima = Block::template wide_minima<Wide>(blocks);
  }

  template <int k>
  MOE_INLINE kernels::ByteRegister codes() const {
    return (kernels::ByteRegister)its_codes[k];
  }
  template <int k>
  MOE_INLINE Lanes<float> scales() const {
    return its_scales[k];
  }
  template <int>
  MOE_INLINE Lanes<float> minima() const {
    return its_minima;
  }
};

/// A block of 256 numbers, of which the scales of groups are in registers.
template <class Block>
struct OneWideBlock {
  const std::byte* block;
  GroupScales of_groups, minima_of_groups;

  MOE_INLINE explicit OneWideBlock(const std::byte* its) : block(its) {
    Block::template put_scales<Wide>(block, of_groups, minima_of_groups);
  }

  template <int k>
  MOE_INLINE kernels::ByteRegister codes() const {
    return (kernels::ByteRegister)Block::template wide_codes<k, Wide>(block);
  }

  template <int k>
  MOE_INLINE Lanes<float> scales() const {
    const auto all = kernels::load_as<Lanes<float>>(of_groups.at);
    return [&]<int... i>(std::integer_sequence<int, i...>) __attribute__((always_inline)) {
      return kernels::shuffle<float, (64 * k + 4 * i) / int(Block::group)...>(all, all);
    }(std::make_integer_sequence<int, kernels::lanes<float>>{});
  }

  template <int>
  MOE_INLINE Lanes<float> minima() const {
    return kernels::load_as<Lanes<float>>(minima_of_groups.at);
  }
};

/// Blocks that were taken apart in memory, which the compiler keeps in registers as far as there are some.
template <class Block, Index numbers>
struct TakenBlocks : kernels::TakenUnit<numbers, Block::group, Block::has_minima> {
  MOE_INLINE explicit TakenBlocks(const std::byte* blocks) {
    constexpr int groups_of_block = int(Block::numbers / Block::group);
    kernels::unroll<int(numbers / Block::numbers)>([&](auto i) __attribute__((always_inline)) {
      Block::integers(blocks + i * Block::bytes, this->its_codes + i * Block::numbers,
                      this->its_scales + i * groups_of_block,
                      this->minima_of_groups + (Block::has_minima ? i * groups_of_block : 0));
    });
  }
};

template <class Block>
constexpr int offset_of() {
  if constexpr (requires { Block::offset; }) {
    return Block::offset;
  } else {
    return 0;
  }
}

/// A kernels::CodedRow of blocks.
template <class Block>
struct BlockRow {
  static constexpr Index unit = std::max<Index>(128, Block::numbers), group = Block::group;
  static constexpr Index blocks = unit / Block::numbers;
  static constexpr bool is_whole = blocks == 1, has_minima = Block::has_minima;
  static constexpr int offset = WideBlock<Block> ? offset_of<Block>() : 0;
  static constexpr bool is_unsigned = has_minima || offset > 0;
  static_assert(unit % Block::numbers == 0);

  const std::byte* row;
  Index apart;  // from one row to the next

  BlockRow(const QuantizedMatrix& matrix, Index its_row)
      : row(matrix.codes_at(its_row, 0)), apart(matrix.codes_at(its_row + 1, 0) - row) {
    eigen_assert(matrix.codes.rows_together == 1);
  }

  void go_on() { row += apart; }

  MOE_INLINE auto at(Index u) const {
    constexpr Index bytes = blocks * Block::bytes, ahead = 8192;
    const std::byte* const from = row + u * bytes;
    for (Index i = 0; i < bytes; i += 64) __builtin_prefetch(from + ahead + i);
    return unit_at(from);
  }

  auto last(Index u, Index count) const {
    alignas(64) std::byte padded[blocks * Block::bytes] = {};
    std::memcpy(padded, row + u * blocks * Block::bytes, std::size_t(count / Block::numbers * Block::bytes));
    return unit_at(padded);
  }

 private:
  MOE_INLINE static auto unit_at(const std::byte* from) {
    if constexpr (!WideBlock<Block>) {
      return TakenBlocks<Block, unit>(from);
    } else if constexpr (blocks == 1) {
      return OneWideBlock<Block>(from);
    } else {
      return FourWideBlocks<Block>(from);
    }
  }
};

/// What makes a block that has an IntegerForm one that is multiplied in registers.
template <class Block>
struct InRegisters {
  /// IntegerForm::multiply.
  static void multiply(const QuantizedMatrix& matrix, Index first, Index rows, const kernels::CodedColumns& x,
                       float* out, Index stride) {
    kernels::register_products<BlockRow<Block>>(matrix, first, rows, x, out, stride);
  }
};

}  // namespace moe::inline MOE_TARGET::codes
