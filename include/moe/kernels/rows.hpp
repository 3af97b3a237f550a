/// @file  The rows of weights that a product reads, in place.
#pragma once

#include <cstddef>
#include <cstdint>

#include "moe/core/quantized.hpp"
#include "moe/core/types.hpp"

namespace moe::inline MOE_TARGET::kernels {

/// Rows of one matrix, or of two in turn (gate, up, gate, up, …), which then share every load of a token.
template <class W>
struct Rows {
  const W* even;
  const W* odd;
  Index pair_step;  // from one even row to the next
  Index count;

  const W* operator[](Index row) const { return ((row & 1) ? odd : even) + (row >> 1) * pair_step; }

  /// Rows [first, first + size), where `first` is even.
  Rows middle(Index first, Index size) const {
    return {even + first / 2 * pair_step, odd + first / 2 * pair_step, pair_step, size};
  }
};

/// Of coded matrices.
template <>
struct Rows<Quantized> {
  const QuantizedMatrix* even;
  const QuantizedMatrix* odd;  // null: they are of one matrix
  Index first, count;          // from row `first` of either on

  /// Writes numbers [begin, begin + size) of a row.
  void decode(Index row, Index begin, Index size, float* to) const {
    matrix_of(row).decode(row_in_matrix(row), begin, size, to);
  }

  /// Writes the same numbers as integers: QuantizedMatrix::take.
  void take(Index row, Index begin, Index size, std::int8_t* codes, float* scales, float* minima) const {
    matrix_of(row).take(row_in_matrix(row), begin, size, codes, scales, minima);
  }

  /// Asks for their codes before they are decoded.
  [[gnu::always_inline]] void fetch(Index row, Index begin, Index size) const {
    if (row < count) matrix_of(row).fetch(row_in_matrix(row), begin, size);
  }

  /// Where their codes lie.
  const std::byte* codes_at(Index row, Index begin) const { return matrix_of(row).codes_at(row_in_matrix(row), begin); }

 private:
  const QuantizedMatrix& matrix_of(Index row) const { return odd != nullptr && (row & 1) ? *odd : *even; }
  Index row_in_matrix(Index row) const { return first + (odd != nullptr ? row >> 1 : row); }
};

/// Rows [first, last) of w.
template <class W>
Rows<W> rows_of(const WeightMap<W>& w, Index first, Index last) {
  const W* start = w.data() + first * w.outerStride();
  return {start, start + w.outerStride(), 2 * w.outerStride(), last - first};
}

inline Rows<Quantized> rows_of(const QuantizedMatrix& w, Index first, Index last) {
  return {&w, nullptr, first, last - first};
}

/// Rows [first, last) of a and b, in turn.
template <class W>
Rows<W> rows_of_both(const WeightMap<W>& a, const WeightMap<W>& b, Index first, Index last) {
  eigen_assert(a.outerStride() == b.outerStride());
  return {a.data() + first * a.outerStride(), b.data() + first * b.outerStride(), a.outerStride(), 2 * (last - first)};
}
inline Rows<Quantized> rows_of_both(const QuantizedMatrix& a, const QuantizedMatrix& b, Index first, Index last) {
  return {&a, &b, first, 2 * (last - first)};
}

}  // namespace moe::inline MOE_TARGET::kernels
