/// @file  Bytes to wider integers, and back.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "moe/core/types.hpp"
#include "moe/kernels/lanes.hpp"

#if defined(__AVX512BW__) || (defined(__AVX2__) && !defined(__AVX512F__))
#include "moe/kernels/x86/bytes.hpp"
#else

namespace moe::inline MOE_TARGET::kernels {

/// A register of bytes with a sign, as integers of 16 bits.
MOE_INLINE Lanes<std::int16_t> halves_of(const std::byte* from) {
  using Bytes = typename detail::VectorOf<std::int8_t, register_bytes / 2>::type;
  return __builtin_convertvector(load_as<Bytes>(from), Lanes<std::int16_t>);
}

/// As many bytes as floats fit into a register, of std::int8_t or std::uint8_t.
template <class Byte>
MOE_INLINE IntLanes<std::int32_t> integers_of(const std::byte* from) {
  using Half = std::conditional_t<std::is_signed_v<Byte>, std::int16_t, std::uint16_t>;  // g++ 12 goes by halves well
  const auto halves = __builtin_convertvector(load_as<IntLanes<Byte>>(from), IntLanes<Half>);
  return __builtin_convertvector(halves, IntLanes<std::int32_t>);
}

/// The lowest byte of each integer.
MOE_INLINE void store_low_bytes(const IntLanes<std::int32_t>& v, std::int8_t* to) {
  store(to, __builtin_convertvector(v, IntLanes<std::int8_t>));
}

}  // namespace moe::inline MOE_TARGET::kernels

#endif
