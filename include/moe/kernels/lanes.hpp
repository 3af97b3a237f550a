/// @file  One register full of numbers.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#include "moe/core/types.hpp"

// clang++ prefers 256-bit registers even where it may use 512-bit ones, unless a function asks for more.
#if defined(__clang__) && defined(__AVX512F__)
#define MOE_KERNEL [[clang::min_vector_width(512)]]
#else
#define MOE_KERNEL
#endif
// Without optimisation it is compile time that counts: a function is then compiled once, not at each of its uses.
#if defined(__OPTIMIZE__)
#define MOE_INLINE MOE_KERNEL [[gnu::always_inline]] inline
#else
#define MOE_INLINE MOE_KERNEL inline
#endif

namespace moe::inline MOE_TARGET::kernels {

/// Bytes of the widest register that this translation unit may use.
#if defined(__AVX512F__)
inline constexpr std::size_t register_bytes = 64;
#elif defined(__AVX__)
inline constexpr std::size_t register_bytes = 32;
#else
inline constexpr std::size_t register_bytes = 16;
#endif

/// How many registers there are to accumulate in.
#if defined(__AVX512F__) || defined(__aarch64__)
inline constexpr int num_registers = 32;
#else
inline constexpr int num_registers = 16;
#endif

namespace detail {
template <class S, std::size_t bytes>
struct VectorOf {
  typedef S type __attribute__((vector_size(bytes)));
};
}  // namespace detail

/// How many S fit into one register.
template <class S>
inline constexpr int lanes = static_cast<int>(register_bytes / sizeof(S));

/// A register of S, with + - * element by element; `a * b + c` is said by multiply_add().
template <class S>
using Lanes = typename detail::VectorOf<S, register_bytes>::type;

/// Integers of another size, as many as floats fit into a register.
template <class T>
using IntLanes = typename detail::VectorOf<T, sizeof(T) * static_cast<std::size_t>(lanes<float>)>::type;

/// Two neighbouring bfloat16 in each lane of a register of floats, the first in the lower half.
using Pairs = IntLanes<std::uint32_t>;

template <class V, class T>
MOE_INLINE V load_as(const T* from) {
  V v;
  std::memcpy(&v, from, sizeof v);
  return v;
}

/// Makes v a register where there are enough of them: otherwise g++ reads it from memory again for each of its uses.
template <class V>
MOE_INLINE void keep_in_register([[maybe_unused]] V& v) {
#if defined(__AVX512F__)
  if constexpr (sizeof(V) == register_bytes) asm("" : "+v"(v));
#endif
}

/// The same for a pointer: g++ may not make it of others.
template <class T>
MOE_INLINE void keep_in_register(const T*& pointer) {
  asm("" : "+r"(pointer));
}

/// Calls f(0), f(1), … f(n − 1) with compile-time numbers, so that arrays of registers stay in registers.
template <int n, class F>
MOE_INLINE constexpr void unroll(F&& f) {
  [&]<int... i>(std::integer_sequence<int, i...>) __attribute__((always_inline)) {
    (f(std::integral_constant<int, i>{}), ...);
  }(std::make_integer_sequence<int, n>{});
}

/// The same for an f that does without compile-time numbers.
template <int n, class F>
MOE_INLINE void repeat(F&& f) {
#if defined(__OPTIMIZE__)
  unroll<n>(f);
#else
  for (int i = 0; i < n; ++i) f(i);
#endif
}

template <class V, class T>
MOE_INLINE void store(T* to, const V& v) {
  std::memcpy(to, &v, sizeof v);
}

}  // namespace moe::inline MOE_TARGET::kernels
