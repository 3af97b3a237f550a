/// @file  Times several things in turn, so that what disturbs one disturbs all.
#pragma once

#include <algorithm>
#include <chrono>
#include <functional>
#include <numeric>
#include <vector>

namespace moe::bench {

template <class F>
double seconds_of(const F& f) {
  using Clock = std::chrono::steady_clock;
  const auto begin = Clock::now();
  f();
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

/// @pre not empty
inline double median(std::vector<double> numbers) {
  const auto middle = numbers.begin() + static_cast<std::ptrdiff_t>(numbers.size() / 2);
  std::nth_element(numbers.begin(), middle, numbers.end());
  return *middle;
}

/// Calls A B C, A B C, … and returns the seconds of each call, per thing. The first round warms up; what takes more
/// than `budget` by itself is then done, the others go on until they have used it up together, once at least.
/// @param things  each does its work once and returns how long that took
inline std::vector<std::vector<double>> time_in_turn(const std::vector<std::function<double()>>& things,
                                                     double budget) {
  constexpr std::size_t enough = 200;
  std::vector<std::vector<double>> seconds(things.size());
  std::vector<std::size_t> goes_on;
  for (std::size_t i = 0; i < things.size(); ++i) {
    const double warm_up = things[i]();
    if (warm_up > budget) {
      seconds[i] = {warm_up};
    } else {
      goes_on.push_back(i);
    }
  }
  double spent = 0;
  for (std::size_t round = 0; round == 0 || (round < enough && spent < budget); ++round) {
    for (const std::size_t i : goes_on) {
      seconds[i].push_back(things[i]());
      spent += seconds[i].back();
    }
  }
  return seconds;
}

}  // namespace moe::bench
