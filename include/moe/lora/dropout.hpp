/// @file  Leaves out some of the numbers that an adapter reads, while it learns.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "moe/core/check.hpp"
#include "moe/core/random_number.hpp"
#include "moe/core/types.hpp"

namespace moe::inline MOE_TARGET {

/// Each number is left out with probability `share`, and divided by 1 − share otherwise, as the seeds, the matrix, the
/// token and its place alone decide.
/// Srivastava et al. 2014, "Dropout", JMLR 15.
class Dropout {
 public:
  Dropout() = default;  // leaves out nothing

  /// @param seed  of the adapters
  /// @param step  another one for each step; nothing is left out where there is none
  Dropout(double share, std::uint64_t seed, std::optional<std::uint64_t> step)
      : share_(step ? share : 0), stream_(random_bits(seed, step.value_or(0))) {}

  bool is_off() const { return share_ == 0; }  ///< Is nothing left out?

  /// That of one of several matrices that read the same tokens.
  Dropout of_matrix(Index matrix) const {
    Dropout its = *this;
    its.stream_ = random_bits(stream_, std::uint64_t(matrix));
    return its;
  }

  /// to = from, the numbers of a token from its `first` on, but for what is left out. May be the same memory.
  template <class From, class To>
  void copy(Index token, Index first, const From& from, To&& to) const {
    using Scalar = typename From::Scalar;
    const std::uint64_t stream = random_bits(stream_, std::uint64_t(token));
    const auto scale = Scalar(1 / (1 - share_));
    for (Index i = 0; i < from.size(); ++i) {
      to(i) = uniform_number(stream, std::uint64_t(first + i)) < share_ ? Scalar(0) : scale * from(i);
    }
  }

 private:
  double share_ = 0;
  std::uint64_t stream_ = 0;
};

/// @throws std::invalid_argument unless 0 ≤ share < 1.
inline void require_dropout(double share, const std::string& who) {
  require(share >= 0 && share < 1, who + ": dropout is " + std::to_string(share) + ", expected 0 to below 1");
}

}  // namespace moe::inline MOE_TARGET
