/// @file  Which tokens of a batch count.
#pragma once

#include <cstdint>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>

#include "moe/core/types.hpp"

namespace moe::inline MOE_TARGET {

/// (n_tokens) 0 for a token that does not count, such as padding, 1 for one that does, as in an attention mask; empty
/// if all of them count.
using TokenMask = std::span<const std::uint8_t>;

/// Does this token not count?
inline bool is_masked(TokenMask mask, Index token) { return !mask.empty() && mask[std::size_t(token)] == 0; }

/// @throws std::invalid_argument unless the mask is empty or has an entry for each token.
inline void require_mask(TokenMask mask, Index num_tokens, std::string_view who) {
  if (mask.empty() || std::ssize(mask) == num_tokens) return;
  throw std::invalid_argument(std::string(who) + ": mask.size() is " + std::to_string(mask.size()) + ", expected " +
                              std::to_string(num_tokens));
}

}  // namespace moe::inline MOE_TARGET
