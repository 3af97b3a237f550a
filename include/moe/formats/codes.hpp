/// @file  The vocabulary of decoders: codes of a few bits, and what they stand for.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "moe/core/types.hpp"
#include "moe/kernels/lanes.hpp"

namespace moe::inline MOE_TARGET::codes {

using kernels::IntLanes;
using kernels::Lanes;

/// Some bytes in a register.
template <int count>
using Bytes = typename kernels::detail::VectorOf<std::uint8_t, std::size_t(count)>::type;

/// Codes of eight bits with a sign, on their way from one step to the other.
template <int count>
struct alignas(64) Codes {
  std::int8_t at[count];
};

/// What each code of four bits stands for.
using SixteenValues = std::array<std::int8_t, 16>;

/// first, first + 1, …
constexpr SixteenValues sixteen_from(int first) {
  SixteenValues values{};
  for (int i = 0; i < 16; ++i) values[std::size_t(i)] = std::int8_t(first + i);
  return values;
}

/// The same number in each lane.
MOE_INLINE Lanes<float> all(float x) { return x - Lanes<float>{}; }

/// Each byte, below 64, less 32.
constexpr std::uint64_t less_32(std::uint64_t bytes) {
  constexpr std::uint64_t each = 0x0101010101010101U;
  return ((bytes | 0x80 * each) - 0x20 * each) ^ 0x80 * each;
}

/// The float16 at `from`.
MOE_INLINE float half_at(const std::byte* from) {
#if defined(__aarch64__)
  return float(kernels::load_as<__fp16>(from));  // one instruction, where Eigen has many
#else
  return float(kernels::load_as<float16>(from));
#endif
}

/// The two float16 that a block begins with.
struct TwoFloats {
  float first, second;
};

}  // namespace moe::inline MOE_TARGET::codes
