/// @file  Moves lanes from one place to another.
#pragma once

#include <cstdint>
#include <type_traits>
#include <utility>

#include "moe/kernels/lanes.hpp"

namespace moe::inline MOE_TARGET::kernels {

/// Lane i is lane j[i] of a and b taken together, a first.
template <class S, int... j>
MOE_INLINE Lanes<S> shuffle(const Lanes<S>& a, const Lanes<S>& b) {
#if defined(__clang__)
  return __builtin_shufflevector(a, b, j...);
#else
  using Number = std::conditional_t<sizeof(S) == 8, std::int64_t, std::int32_t>;
  return __builtin_shuffle(a, b, typename detail::VectorOf<Number, register_bytes>::type{j...});
#endif
}

/// Every second lane of a and b taken together, from the first on.
template <class S>
MOE_INLINE Lanes<S> evens(const Lanes<S>& a, const Lanes<S>& b) {
  return [&]<int... i>(std::integer_sequence<int, i...>) __attribute__((always_inline)) {
    return shuffle<S, 2 * i...>(a, b);
  }(std::make_integer_sequence<int, lanes<S>>{});
}

/// Every second lane of a and b taken together, from the second on.
template <class S>
MOE_INLINE Lanes<S> odds(const Lanes<S>& a, const Lanes<S>& b) {
  return [&]<int... i>(std::integer_sequence<int, i...>) __attribute__((always_inline)) {
    return shuffle<S, 2 * i + 1 ...>(a, b);
  }(std::make_integer_sequence<int, lanes<S>>{});
}

}  // namespace moe::inline MOE_TARGET::kernels
