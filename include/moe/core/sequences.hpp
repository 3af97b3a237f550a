/// @file  How a batch of tokens divides into sequences.
#pragma once

#include <algorithm>
#include <stdexcept>
#include <string>
#include <string_view>

#include "moe/core/types.hpp"

namespace moe::inline MOE_TARGET {

/// Tokens in each sequence of a batch, at least 1.
/// @param sequence_length  of SideInputs; 0: the batch is one sequence
/// @param who              what errors begin with
/// @throws std::invalid_argument unless the batch is whole sequences.
inline Index tokens_per_sequence(Index num_tokens, Index sequence_length, std::string_view who) {
  if (sequence_length == 0) return std::max<Index>(1, num_tokens);
  if (sequence_length > 0 && num_tokens % sequence_length == 0) return sequence_length;
  throw std::invalid_argument(std::string(who) + ": " + std::to_string(num_tokens) +
                              " tokens are not whole sequences of " + std::to_string(sequence_length));
}

}  // namespace moe::inline MOE_TARGET
