/// @file  Preconditions that a caller can get wrong become exceptions that say what was expected.
#pragma once

#include <stdexcept>
#include <string>
#include <string_view>

namespace moe {

/// @throws std::invalid_argument naming both numbers, e.g. "MoeLayer: x.rows() is 7, expected 8".
inline void require_equal(long long got, long long expected, std::string_view what) {
  if (got != expected) {
    throw std::invalid_argument(std::string(what) + " is " + std::to_string(got) + ", expected " +
                                std::to_string(expected));
  }
}

/// @throws std::invalid_argument naming all three numbers unless lowest ≤ got ≤ highest.
inline void require_between(long long lowest, long long got, long long highest, std::string_view what) {
  if (got < lowest || got > highest) {
    throw std::invalid_argument(std::string(what) + " is " + std::to_string(got) + ", expected " +
                                std::to_string(lowest) + " to " + std::to_string(highest));
  }
}

/// @throws std::invalid_argument with this message unless it holds.
inline void require(bool holds, std::string_view message) {
  if (!holds) throw std::invalid_argument(std::string(message));
}

}  // namespace moe
