/// @file  From numbers to blocks of few bits: the inverse of a format's decode().
#pragma once

#include <cstddef>

#include "moe/core/types.hpp"

namespace moe::inline MOE_TARGET {

/// How the numbers of a Block are found; specialised beside each format that can be written:
///
///   template <>
///   struct Encoder<Q8_0> {
///     static constexpr Index numbers = 32, bytes = 34;  // of a block
///     static constexpr bool weighs = true;              // that it looks at importance; else nothing
///     /// @param x           (numbers) all finite
///     /// @param importance  (numbers) how much the square of each error counts, none negative; or null: all alike
///     static void encode(const float* x, const float* importance, std::byte* block);
///   };
///
/// Each block is by itself, and its bits depend on these numbers alone: on no compiler, no processor, no thread.
template <class Block>
struct Encoder;

/// Does its encoder look at importance?
template <class Block>
inline constexpr bool weighs = requires { requires Encoder<Block>::weighs; };

/// `count` numbers of a row, a multiple of the block's, one block after the other.
template <class Block>
void encode(const float* x, Index count, std::byte* to, const float* importance = nullptr) {
  for (Index i = 0; i < count; i += Encoder<Block>::numbers, to += Encoder<Block>::bytes)
    Encoder<Block>::encode(x + i, importance == nullptr ? nullptr : importance + i, to);
}

}  // namespace moe::inline MOE_TARGET
