/// @file  Registers of bytes.
#pragma once

#include <cstddef>
#include <cstdint>

#include "moe/core/types.hpp"
#include "moe/kernels/lanes.hpp"

namespace moe::inline MOE_TARGET::kernels {

/// So many bytes with a sign, four to each lane of integers.
template <std::size_t bytes>
using BytesOf = typename detail::VectorOf<std::int8_t, bytes>::type;
template <std::size_t bytes>
using IntegersOf = typename detail::VectorOf<std::int32_t, bytes>::type;

/// A register of weights as it lies, for whoever multiplies bytes that both have signs.
/// @tparam nonnegative  no code is below zero, which makes no difference here
template <bool nonnegative, std::size_t bytes>
struct SignedByteWeights {
  BytesOf<bytes> codes;

  MOE_INLINE explicit SignedByteWeights(const BytesOf<bytes>& w) : codes(w) {}
};

}  // namespace moe::inline MOE_TARGET::kernels
