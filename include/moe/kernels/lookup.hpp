/// @file  Looks numbers up in tables of sixteen.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "moe/core/types.hpp"
#include "moe/kernels/lanes.hpp"
#include "moe/kernels/sixteen.hpp"

namespace moe::inline MOE_TARGET::kernels {

namespace detail {

/// How far to shift, for a lane to begin with its four bits: low ones of a byte first, or high ones.
template <bool high_first>
MOE_INLINE Pairs nibble_places() {
  Pairs places{};
  for (unsigned i = 0; i < unsigned(lanes<float>); ++i) places[i] = 4 * (i % 8 ^ unsigned(high_first));
  return places;
}

}  // namespace detail

}  // namespace moe::inline MOE_TARGET::kernels

#if defined(__AVX512F__) || defined(__AVX2__)
#include "moe/kernels/x86/lookup.hpp"
#elif defined(__aarch64__)
#include "moe/kernels/arm/lookup.hpp"
#else

namespace moe::inline MOE_TARGET::kernels {

/// Lane i is the table's number at the lowest four bits of index[i].
MOE_INLINE Lanes<float> lookup(const Sixteen& table, const Pairs& index) {
  float numbers[16];
  store(numbers, table);
  Lanes<float> v{};
  for (int i = 0; i < lanes<float>; ++i) v[i] = numbers[index[i] & 15U];
  return v;
}

}  // namespace moe::inline MOE_TARGET::kernels

#endif

namespace moe::inline MOE_TARGET::kernels {

/// A code of four bits in each lane, below anything else: the lanes<float> of them from this byte on.
template <bool high_first = false>
MOE_INLINE Pairs nibbles(const std::byte* from) {
  if constexpr (lanes<float> == 16) {
#if defined(__AVX512F__)
    return detail::sixteen_nibbles<high_first>(from);
#else
    const auto first = load_as<std::uint32_t>(from), second = load_as<std::uint32_t>(from + 4);
    Pairs words{};
    for (int i = 0; i < lanes<float>; ++i) words[i] = i < 8 ? first : second;
    return words >> detail::nibble_places<high_first>();
#endif
  } else {
    std::conditional_t<lanes<float> == 8, std::uint32_t, std::uint16_t> word;
    std::memcpy(&word, from, sizeof word);
    return (Pairs{} + std::uint32_t(word)) >> detail::nibble_places<high_first>();
  }
}

}  // namespace moe::inline MOE_TARGET::kernels
