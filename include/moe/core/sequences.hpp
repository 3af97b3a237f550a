/// @file  How a batch of tokens divides into sequences.
#pragma once

#include <algorithm>
#include <iterator>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>

#include "moe/core/check.hpp"
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

/// The sequences of a batch, one after the other: all of one length, or each of its own.
class Sequences {
 public:
  /// @param sequence_length  of SideInputs; 0: the batch is one sequence
  /// @param starts           of SideInputs; empty: all are of that length
  /// @param who              what errors begin with
  /// @throws std::invalid_argument unless the batch is whole sequences.
  Sequences(Index num_tokens, Index sequence_length, std::span<const Index> starts, std::string_view who)
      : num_tokens_(num_tokens), length_(1), starts_(starts) {
    if (starts.empty()) {
      length_ = tokens_per_sequence(num_tokens, sequence_length, who);
    } else if (starts.front() != 0 || starts.back() != num_tokens || !std::is_sorted(starts.begin(), starts.end())) {
      require(false, std::string(who) + ": side.sequence_starts do not ascend from 0 to " + std::to_string(num_tokens));
    }
  }

  /// How many sequences there are.
  Index count() const { return starts_.empty() ? num_tokens_ / length_ : std::ssize(starts_) - 1; }
  /// Its first token.
  Index first(Index sequence) const { return starts_.empty() ? sequence * length_ : starts_[std::size_t(sequence)]; }
  Index size(Index sequence) const { return first(sequence + 1) - first(sequence); }  ///< Its tokens.

  /// Which one a token is of.
  Index of(Index token) const {
    if (starts_.empty()) return token / length_;
    return std::upper_bound(starts_.begin(), starts_.end(), token) - starts_.begin() - 1;
  }

 private:
  Index num_tokens_, length_;
  std::span<const Index> starts_;
};

}  // namespace moe::inline MOE_TARGET
