/// @file  Turns a square of registers around.
#pragma once

#include <algorithm>
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

/// v with its blocks of `size` lanes swapped in pairs of neighbours.
template <class S, int size>
MOE_INLINE Lanes<S> swapped_blocks(const Lanes<S>& v) {
  return [&]<int... j>(std::integer_sequence<int, j...>) __attribute__((always_inline)) {
    return shuffle<S, (j ^ size)...>(v, v);
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

/// Lane i of the result is the sum of v[i], for the first `filled` of lanes<S> registers. Every lane is summed in the
/// same order, by halves.
template <class S, int filled = lanes<S>, int size = lanes<S> / 2>
MOE_INLINE Lanes<S> sums(Lanes<S> (&v)[lanes<S>]) {
  if constexpr (size == 0) {
    return v[0];
  } else {
    unroll<std::min(filled, size)>([&](auto i) {
      if constexpr (i + size < filled) {
        swap_blocks<S, size>(v[i], v[i + size]);
        v[i] += v[i + size];
      } else {
        v[i] += swapped_blocks<S, size>(v[i]);
      }
    });
    return sums<S, std::min(filled, size), size / 2>(v);
  }
}

/// The first two of the halvings of sums(): of v[i], v[i + L/4], v[i + L/2] and v[i + 3L/4], for L lanes.
template <class S>
MOE_INLINE Lanes<S> sums_of_quarters(Lanes<S> (&v)[4]) {
  constexpr int L = lanes<S>;
  swap_blocks<S, L / 2>(v[0], v[2]);
  swap_blocks<S, L / 2>(v[1], v[3]);
  Lanes<S> a = v[0] + v[2], b = v[1] + v[3];
  swap_blocks<S, L / 4>(a, b);
  return a + b;
}

}  // namespace moe::inline MOE_TARGET::kernels
