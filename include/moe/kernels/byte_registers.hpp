/// @file  Registers of bytes.
#pragma once

#include <cstdint>

#include "moe/core/types.hpp"
#include "moe/kernels/lanes.hpp"

namespace moe::inline MOE_TARGET::kernels {

/// So many bytes with a sign, four to each lane of integers.
template <std::size_t bytes>
using BytesOf = typename detail::VectorOf<std::int8_t, bytes>::type;
template <std::size_t bytes>
using IntegersOf = typename detail::VectorOf<std::int32_t, bytes>::type;

}  // namespace moe::inline MOE_TARGET::kernels
