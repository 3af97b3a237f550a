/// @file  Random numbers without a generator: number i of stream `seed` is a function of the two.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numbers>

#include "moe/core/types.hpp"

namespace moe::inline MOE_TARGET {

/// SplitMix64, Steele et al. 2014, doi:10.1145/2660193.2660195.
inline std::uint64_t random_bits(std::uint64_t seed, std::uint64_t i) {
  std::uint64_t z = seed * 0xd1342543de82ef95 + (i + 1) * 0x9e3779b97f4a7c15;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
  z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
  return z ^ (z >> 31);
}

/// Uniform in [−1, 1).
inline float random_number(std::uint64_t seed, std::uint64_t i) {
  return static_cast<float>(static_cast<std::int64_t>(random_bits(seed, i)) >> 40) * 0x1p-23f;
}

/// Uniform in [0, 1).
inline double uniform_number(std::uint64_t seed, std::uint64_t i) {
  return static_cast<double>(random_bits(seed, i) >> 11) * 0x1p-53;
}

/// Normal, of mean 0 and variance 1. Box and Muller 1958, doi:10.1214/aoms/1177706645.
inline double normal_number(std::uint64_t seed, std::uint64_t i) {
  const double radius = std::sqrt(-2 * std::log1p(-uniform_number(seed, 2 * i)));
  return radius * std::cos(2 * std::numbers::pi * uniform_number(seed, 2 * i + 1));
}

/// Uniform among 0 … n − 1, where n < 2³²: no number is likelier than another by more than n / 2³².
inline Index random_below(Index n, std::uint64_t seed, std::uint64_t i) {
  return static_cast<Index>((random_bits(seed, i) >> 32) * static_cast<std::uint64_t>(n) >> 32);
}

/// k different numbers among 0 … n − 1, every set of them as likely as another. Reads numbers i … i + k − 1 of the
/// stream. Floyd's algorithm: Bentley and Floyd 1987, doi:10.1145/30401.315746.
inline void random_set(Index n, Index k, std::uint64_t seed, std::uint64_t i, Index* chosen) {
  for (Index size = 0; size < k; ++size) {
    const Index newest = n - k + size;
    const Index candidate = random_below(newest + 1, seed, i + static_cast<std::uint64_t>(size));
    const bool taken = std::find(chosen, chosen + size, candidate) != chosen + size;
    chosen[size] = taken ? newest : candidate;
  }
}

}  // namespace moe::inline MOE_TARGET
