/// @file  The size of numbers as a power of two, by which they can be divided without rounding.
#pragma once

#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#include "moe/core/types.hpp"
#include "moe/kernels/lanes.hpp"

namespace moe::inline MOE_TARGET::kernels {

/// 2ᵉ of each lane, at most as large as the largest of some numbers there, and more than a quarter of it; for what is
/// smaller than any normal number, the smallest. Its inverse is a number as well.
template <class Scalar>
class PowerOfTwo {
 public:
  using Numbers = Lanes<Scalar>;

  template <class... More>
  MOE_INLINE explicit PowerOfTwo(const Numbers& first, const More&... more) {
    Bits largest = magnitude(first);
    (enlarge(largest, magnitude(more)), ...);
    bits_ = largest & exponent;
    bits_ = bits_ < one_step ? one_step - Bits{} : bits_;
    bits_ = bits_ > sum - one_step ? sum - one_step - Bits{} : bits_;
  }

  MOE_INLINE Numbers value() const { return numbers(bits_); }
  MOE_INLINE Numbers inverse() const { return numbers(sum - bits_); }

 private:
  using Bit = std::conditional_t<sizeof(Scalar) == 4, std::int32_t, std::int64_t>;
  using Bits = Lanes<Bit>;
  static constexpr int mantissa = std::numeric_limits<Scalar>::digits - 1;
  static constexpr Bit one_step = Bit(1) << mantissa;
  static constexpr Bit sum = Bit(2 * (std::numeric_limits<Scalar>::max_exponent - 1)) << mantissa;  // of e and −e
  static constexpr Bit exponent = std::numeric_limits<Bit>::max() / one_step * one_step;

  MOE_INLINE static Bits magnitude(const Numbers& numbers) {
    Bits bits;
    std::memcpy(&bits, &numbers, sizeof bits);
    return bits & std::numeric_limits<Bit>::max();
  }
  MOE_INLINE static void enlarge(Bits& largest, const Bits& other) { largest = other > largest ? other : largest; }
  MOE_INLINE static Numbers numbers(const Bits& bits) {
    Numbers result;
    std::memcpy(&result, &bits, sizeof result);
    return result;
  }

  Bits bits_;
};

}  // namespace moe::inline MOE_TARGET::kernels
