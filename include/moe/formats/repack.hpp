/// @file  Turns codes that files pack along the columns of a matrix into rows.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#include "moe/core/types.hpp"
#include "moe/kernels/lanes.hpp"

namespace moe::inline MOE_TARGET {

namespace detail {

inline std::uint32_t word_at(const std::byte* words, Index i) { return kernels::load_as<std::uint32_t>(words + 4 * i); }

/// Code i of a stream of `bits` each, low bits first, whose words are `stride` words apart.
inline std::uint8_t code_at(const std::byte* words, Index stride, Index i, int bits) {
  const Index bit = i * bits, word = bit / 32, shift = bit % 32;
  std::uint64_t both = word_at(words, word * stride);
  if (shift + bits > 32) both |= std::uint64_t(word_at(words, (word + 1) * stride)) << 32;
  return std::uint8_t(both >> shift & ((1U << bits) - 1));
}

}  // namespace detail

/// A matrix of elements of `size` bytes, turned: (rows × cols) to (cols × rows). Words of GPTQ's codes turned so are
/// rows of codes, one after the other.
template <std::size_t size>
void turn(const std::byte* from, Index rows, Index cols, std::byte* to) {
  constexpr Index tile = 16;  // a line of the cache of words, each way
  for (Index r0 = 0; r0 < rows; r0 += tile) {
    for (Index c = 0; c < cols; ++c) {
      for (Index r = r0; r < std::min(rows, r0 + tile); ++r) {
        std::memcpy(to + std::size_t(c * rows + r) * size, from + std::size_t(r * cols + c) * size, size);
      }
    }
  }
}

/// Zero points that are packed along columns, as bytes: of (num × groups) codes in words [·, groups], byte
/// r · groups + g is code r of column g: compressed-tensors.
inline void zeros_down(const std::byte* words, Index num, Index groups, int bits, std::byte* zeros) {
  for (Index r = 0; r < num; ++r) {
    for (Index g = 0; g < groups; ++g) {
      zeros[r * groups + g] = std::byte(detail::code_at(words + 4 * g, groups, r, bits));
    }
  }
}

/// Zero points of GPTQ, words [groups, num · bits / 32], as bytes [num][groups].
/// @param one_less  as version 1 stores them: 1 was subtracted from every field of a word, and a field that was 0
///                  borrowed from the next; of 3 bits, whose fields cross words, from each by itself.
inline void zeros_of_gptq(const std::byte* words, Index groups, Index num, int bits, bool one_less, std::byte* zeros) {
  const Index in_a_row = num * bits / 32;
  const std::uint32_t ones = bits == 2 ? 0x55555555U : bits == 4 ? 0x11111111U : 0x01010101U;
  std::vector<std::byte> row(std::size_t(4 * in_a_row));
  for (Index g = 0; g < groups; ++g) {
    for (Index w = 0; w < in_a_row; ++w) {
      std::uint32_t word = detail::word_at(words, g * in_a_row + w);
      if (one_less && bits != 3) word += ones;
      std::memcpy(row.data() + 4 * w, &word, sizeof word);
    }
    for (Index r = 0; r < num; ++r) {
      const unsigned code = detail::code_at(row.data(), 1, r, bits) + unsigned(one_less && bits == 3);
      zeros[r * groups + g] = std::byte(code & ((1U << bits) - 1));
    }
  }
}

/// Where in a word of AWQ each of eight neighbours is.
inline constexpr std::array<int, 8> place_in_awq = {0, 4, 1, 5, 2, 6, 3, 7};

/// Codes of AWQ, words [cols, rows / 8], as rows of nibbles, low ones first: [rows][cols / 2]. `cols` is even.
inline void rows_of_awq(const std::byte* words, Index rows, Index cols, std::byte* to) {
  constexpr Index tile = 64;  // columns, whose lines are in the cache while their words are read
  std::uint32_t even[tile / 2] = {}, odd[tile / 2] = {};
  std::byte pairs[tile / 2];
  for (Index c = 0; c < cols; c += tile) {
    const Index count = std::min(tile, cols - c) / 2;
    for (Index w = 0; w < rows / 8; ++w) {
      for (Index j = 0; j < count; ++j) {
        even[j] = detail::word_at(words, (c + 2 * j) * (rows / 8) + w);
        odd[j] = detail::word_at(words, (c + 2 * j + 1) * (rows / 8) + w);
      }
      for (Index i = 0; i < 8; ++i) {
        const int shift = 4 * place_in_awq[std::size_t(i)];
        for (Index j = 0; j < tile / 2; ++j) {
          pairs[j] = std::byte((even[j] >> shift & 15U) | (odd[j] >> shift & 15U) << 4);
        }
        std::memcpy(to + (8 * w + i) * (cols / 2) + c / 2, pairs, std::size_t(count));
      }
    }
  }
}

/// Zero points of AWQ, words [groups, num / 8], as bytes [num][groups].
inline void zeros_of_awq(const std::byte* words, Index groups, Index num, std::byte* zeros) {
  for (Index g = 0; g < groups; ++g) {
    for (Index r = 0; r < num; ++r) {
      const std::uint32_t word = detail::word_at(words, g * (num / 8) + r / 8);
      zeros[r * groups + g] = std::byte(word >> (4 * place_in_awq[std::size_t(r % 8)]) & 15U);
    }
  }
}

}  // namespace moe::inline MOE_TARGET
