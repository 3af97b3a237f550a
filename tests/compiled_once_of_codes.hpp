/// @file  Products of coded weights, as they are read and packed, compiled once for all tests, in
/// compiled_once_of_codes.cpp.
#pragma once

#include "allocations.hpp"

#include "moe/formats/ggml.hpp"
#include "moe/formats/packed.hpp"

namespace moe::inline MOE_TARGET::kernels {

#define MOE_ONCE_FOR_BLOCKS(once, Block)                                                             \
  once template void register_products<codes::BlockRow<Block>>(const QuantizedMatrix&, Index, Index, \
                                                               const CodedColumns&, float*, Index);

#define MOE_ONCE_FOR_PACKED(once, Block)                                                                               \
  MOE_ONCE_FOR_BLOCKS(once, Block)                                                                                     \
  once template void packed_products<Packed<Block>>(const QuantizedMatrix&, Index, Index, const CodedColumns&, float*, \
                                                    Index);                                                            \
  once template void packed_block_products<Packed<Block>>(const QuantizedMatrix&, Index, Index, const CodedBlocks&,    \
                                                          float*, Index);

#define MOE_ONCE_OF_CODES(once)        \
  MOE_ONCE_FOR_PACKED(once, Q8_0)      \
  MOE_ONCE_FOR_PACKED(once, Q4_0)      \
  MOE_ONCE_FOR_PACKED(once, IQ4_NL)    \
  MOE_ONCE_FOR_PACKED(once, Q4_K)      \
  MOE_ONCE_FOR_PACKED(once, Q6_K)      \
  MOE_ONCE_FOR_PACKED(once, IQ4_XS)    \
  MOE_ONCE_FOR_PACKED(once, GgmlMxfp4) \
  MOE_ONCE_FOR_BLOCKS(once, Q4_1)      \
  MOE_ONCE_FOR_BLOCKS(once, Q5_0)      \
  MOE_ONCE_FOR_BLOCKS(once, Q5_1)      \
  MOE_ONCE_FOR_BLOCKS(once, Q2_K)      \
  MOE_ONCE_FOR_BLOCKS(once, Q3_K)      \
  MOE_ONCE_FOR_BLOCKS(once, Q5_K)      \
  MOE_ONCE_FOR_BLOCKS(once, GgmlNvfp4)

MOE_ONCE_OF_CODES(extern)

}  // namespace moe::inline MOE_TARGET::kernels
