/// @file  bitsandbytes' numbers of 4 bits, which stand in a table.
#pragma once

#include "moe/core/quantized.hpp"
#include "moe/formats/detail/rows.hpp"
#include "moe/kernels/lookup.hpp"
#include "moe/kernels/rounding.hpp"

namespace moe::inline MOE_TARGET {

namespace detail {

/// Blocks go through the matrix as if it were one row: they need not begin where rows do.
template <class Out>
void decode_table4(const QuantizedMatrix& matrix, Index row, Index first, Index count, float* to) {
  const std::byte *codes = matrix.codes.data, *scales = matrix.scales.data;
  float table[16];
  std::memcpy(table, matrix.zeros.data, sizeof table);
  const kernels::Sixteen numbers = kernels::load_sixteen(table);
  const Index begin = row * matrix.stored_cols() + first;
  each_group<64>(matrix.scales.cols_together, begin, begin + count, [&](Index block, Index at, auto size) {
    const float scale = number_at<float>(scales, block);
    const auto scaled = kernels::each_part(numbers, [&](const auto& part) __attribute__((always_inline)) {
      return kernels::rounded_to<Out>(part * scale);
    });
    if (at % 2 == 0) return decode_nibbles<true>(codes + std::size_t(at) / 2, size, scaled, to + (at - begin));
    float both[2];  // of a byte whose high half is of the row before
    decode_nibbles<true>(codes + std::size_t(at) / 2, 2, scaled, both);
    to[at - begin] = both[1];
    decode_nibbles<true>(codes + std::size_t(at) / 2 + 1, size - 1, scaled, to + (at - begin + 1));
  });
}

}  // namespace detail

/// w = table[q] · size of its block, rounded to Out: NF4 and FP4. `codes` have the high four bits of a byte first, all
/// rows one after the other; `scales` are floats, one for each cols_together numbers of these; the table, sixteen
/// floats, is in the place of zeros. Dettmers et al. 2023, "QLoRA", §3, arXiv:2305.14314.
template <class Out>
inline constexpr NumberFormat table4 = {"NF4", 1, 4, detail::decode_table4<Out>};

}  // namespace moe::inline MOE_TARGET
