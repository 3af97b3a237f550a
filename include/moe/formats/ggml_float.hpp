/// @file  GGUF's types that are floating-point numbers one by one.
#pragma once

#include <cstddef>

#include "moe/core/quantized.hpp"
#include "moe/core/types.hpp"
#include "moe/kernels/lanes.hpp"
#include "moe/kernels/widen.hpp"

namespace moe::inline MOE_TARGET {

namespace codes {

/// The NumberFormat of numbers that lie as T, one after the other in a row, aligned or not.
template <class T>
inline constexpr void (*decode_numbers)(const QuantizedMatrix&, Index, Index, Index, float*) =
    [](const QuantizedMatrix& matrix, Index row, Index first, Index count, float* to) {
      const T* const from = reinterpret_cast<const T*>(matrix.codes.row(row)) + first;
      constexpr Index width = kernels::lanes<float>;
      Index i = 0;
      for (; i + width <= count; i += width) kernels::store(to + i, kernels::widen(from + i));
      for (; i < count; ++i) to[i] = float(kernels::load_as<T>(from + i));
      if (matrix.factor == 1) return;
      for (i = 0; i < count; ++i) to[i] *= matrix.factor;
    };

}  // namespace codes

struct F32 {};
struct F16 {};
struct BF16 {};

template <>
inline constexpr NumberFormat block_format<F32> = {"F32", 1, 32, codes::decode_numbers<float>};
template <>
inline constexpr NumberFormat block_format<F16> = {"F16", 1, 16, codes::decode_numbers<float16>};
template <>
inline constexpr NumberFormat block_format<BF16> = {"BF16", 1, 16, codes::decode_numbers<bfloat16>};

}  // namespace moe::inline MOE_TARGET
