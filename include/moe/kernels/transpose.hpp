/// @file  Turns a square of registers around.
#pragma once

#include <utility>

#include "moe/kernels/lanes.hpp"
#include "moe/kernels/shuffle.hpp"

namespace moe::inline MOE_TARGET::kernels {

/// In each pair of neighbouring blocks of `size` lanes: swaps the second block of a with the first of b.
template <class S, int size>
MOE_INLINE void swap_blocks(Lanes<S>& a, Lanes<S>& b) {
  [&]<int... j>(std::integer_sequence<int, j...>) __attribute__((always_inline)) {
    constexpr int L = lanes<S>;
    const Lanes<S> firsts = shuffle<S, ((j & size) ? L + j - size : j)...>(a, b);
    const Lanes<S> seconds = shuffle<S, ((j & size) ? L + j : j + size)...>(a, b);
    a = firsts;
    b = seconds;
  }(std::make_integer_sequence<int, lanes<S>>{});
}

/// v[i][j] ↔ v[j][i] for lanes<S> registers (Eklundh 1972: blocks of half the size, a quarter, … one).
template <class S, int size = lanes<S> / 2>
MOE_INLINE void transpose(Lanes<S> (&v)[lanes<S>]) {
  repeat<lanes<S> / 2>([&](auto i) {
    const int first = i / size * 2 * size + i % size;
    swap_blocks<S, size>(v[first], v[first + size]);
  });
  if constexpr (size > 1) transpose<S, size / 2>(v);
}

/// Lane i of the result is the sum of v[i], for lanes<S> registers. Every lane is summed in the same order, by halves.
template <class S, int size = lanes<S> / 2>
MOE_INLINE Lanes<S> sums(Lanes<S> (&v)[lanes<S>]) {
  repeat<size>([&](auto i) {
    swap_blocks<S, size>(v[i], v[i + size]);
    v[i] += v[i + size];
  });
  if constexpr (size > 1) {
    return sums<S, size / 2>(v);
  } else {
    return v[0];
  }
}

}  // namespace moe::inline MOE_TARGET::kernels
