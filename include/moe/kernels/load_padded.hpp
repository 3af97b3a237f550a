/// @file  What is left of a row where it is less than a register.
#pragma once

#include <algorithm>
#include <cstring>

#include "moe/core/types.hpp"
#include "moe/kernels/lanes.hpp"

#if defined(__AVX512F__) || (defined(__AVX2__) && defined(__FMA__) && defined(__F16C__))  // "avx2" of target.hpp
#include "moe/kernels/x86/load_padded.hpp"
#else

namespace moe::inline MOE_TARGET::kernels {

/// The first `size` numbers at `from`, and zeros: where size ≤ 0 nothing but these. Nothing behind is read.
template <class V, class T>
MOE_INLINE V load_padded(const T* from, Index size) {
  V v{};
  std::memcpy(&v, from, std::size_t(std::clamp<Index>(size * Index(sizeof(T)), 0, sizeof(V))));
  return v;
}

/// to[0, size) = the first lanes of v, fewer than all. Nothing behind is written.
template <class V, class T>
MOE_INLINE void store_part(T* to, const V& v, Index size) {
  std::memcpy(to, &v, std::size_t(size) * sizeof(T));
}

}  // namespace moe::inline MOE_TARGET::kernels

#endif
