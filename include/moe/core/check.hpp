/// @file  Preconditions that a caller can get wrong become exceptions that say what was expected.
#pragma once

#include <cstdint>
#include <sstream>
#include <stdexcept>
#include <string>
#include <string_view>

#include "moe/core/target.hpp"

namespace moe::inline MOE_TARGET {

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

/// @throws std::invalid_argument naming both numbers unless got ≥ lowest.
inline void require_at_least(long long lowest, long long got, std::string_view what) {
  if (got < lowest) {
    throw std::invalid_argument(std::string(what) + " is " + std::to_string(got) + ", expected at least " +
                                std::to_string(lowest));
  }
}

/// @throws std::invalid_argument naming all three unless lowest ≤ got ≤ highest, as no NaN is.
inline void require_in_range(double lowest, double got, double highest, std::string_view what) {
  if (got >= lowest && got <= highest) return;
  std::ostringstream message;
  message << what << " is " << got << ", expected " << lowest << " to " << highest;
  throw std::invalid_argument(message.str());
}

/// @throws std::invalid_argument with this message unless it holds.
inline void require(bool holds, std::string_view message) {
  if (!holds) throw std::invalid_argument(std::string(message));
}

/// @throws std::invalid_argument naming the first that is not, unless these numbers ascend within [0, end).
template <class Numbers>
void require_ascending(const Numbers& numbers, long long end, std::string_view what) {
  long long lowest = 0, i = 0;
  for (const long long number : numbers) {
    require_between(lowest, number, end - 1, std::string(what) + "[" + std::to_string(i++) + "]");
    lowest = number + 1;
  }
}

namespace detail {

/// Where columns lie, in bytes.
struct Extent {
  std::intptr_t begin, height, stride, count;

  template <class X>
  static Extent of(const X& x) {
    const auto size = static_cast<std::intptr_t>(sizeof(typename X::Scalar));
    return {reinterpret_cast<std::intptr_t>(x.data()), size * x.rows(), size * x.outerStride(), x.cols()};
  }
  bool is_empty() const { return height == 0 || count == 0; }
  std::intptr_t end() const { return begin + (count - 1) * stride + height; }
};

inline bool overlap(const Extent& x, const Extent& y) {
  if (x.is_empty() || y.is_empty() || x.begin >= y.end() || y.begin >= x.end()) return false;
  if (x.stride != y.stride) return true;
  const auto shift = ((y.begin - x.begin) % x.stride + x.stride) % x.stride;  // of y's columns against those of x
  return shift < x.height || x.stride - shift < y.height;
}

}  // namespace detail

/// Do two blocks of columns share a number? (Blocks of rows of one matrix interleave without sharing.)
template <class X, class Y>
bool overlap(const X& x, const Y& y) {
  return detail::overlap(detail::Extent::of(x), detail::Extent::of(y));
}

/// What every layer asks of its x and y: (d_model × n_tokens) both, and not the same memory.
/// @throws std::invalid_argument naming both numbers.
template <class X, class Y>
void require_columns(const X& x, const Y& y, long long d_model, std::string_view who) {
  if (x.rows() == d_model && y.rows() == d_model && y.cols() == x.cols() && !overlap(x, y)) return;
  const std::string name(who);  // here, because a forward that goes well allocates nothing
  require_equal(x.rows(), d_model, name + ": x.rows()");
  require_equal(y.rows(), d_model, name + ": y.rows()");
  require_equal(y.cols(), x.cols(), name + ": y.cols()");
  require(false, name + ": y overlaps x");
}

}  // namespace moe::inline MOE_TARGET
