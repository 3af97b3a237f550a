/// @file  All numbers of a list of parameters, piece after piece, by many threads.
#pragma once

#include <algorithm>
#include <cstddef>
#include <vector>

#include "moe/core/parameters.hpp"
#include "moe/core/task.hpp"
#include "moe/core/types.hpp"
#include "moe/runtime/executors/serial.hpp"
#include "moe/runtime/workers.hpp"

namespace moe::inline MOE_TARGET {

/// Into how many bands all numbers together are cut: for any number of threads the same, so that sums are, too.
inline constexpr Index parameter_bands = 64;

/// Runs f(band, p, first, size) for numbers [first, first + size) of the parameter p, piece after piece until each had
/// its turn: those of one band in order, by one thread. Pieces are small enough to stay in L1 beside what belongs to
/// them.
template <class Scalar, class F>
void for_each_piece(const std::vector<Parameter<Scalar>>& parameters, ExecutorRef executor, const F& f) {
  constexpr Index piece_size = 2048, grain = 64;
  const Index grains = (count_numbers(parameters) + grain - 1) / grain;
  const auto run = [&](Index band, Index) {
    const Index begin = grains * band / parameter_bands * grain, end = grains * (band + 1) / parameter_bands * grain;
    Index before = 0;  // numbers of the parameters before p
    for (std::size_t p = 0; p < parameters.size(); before += parameters[p++].size()) {
      const Index last = std::min(end - before, parameters[p].size());
      for (Index first = std::max<Index>(0, begin - before); first < last; first += piece_size) {
        f(band, p, first, std::min(piece_size, last - first));
      }
    }
  };
  executor.for_each(parameter_bands, Task(run));
}

/// Writes zeros, as all workers together.
template <class Scalar>
void set_to_zero(const std::vector<Parameter<Scalar>>& parameters, ExecutorRef executor = Serial{}) {
  for_each_piece(parameters, executor, [&](Index, std::size_t p, Index first, Index size) {
    std::fill_n(parameters[p].data + first, size, Scalar(0));
  });
}

/// The same layer with 0 for every parameter, such as to hold gradients.
template <class Layer>
Layer zeros_like(const Layer& layer) {
  Layer zeros = layer;
  set_to_zero(parameters(zeros));
  return zeros;
}

}  // namespace moe::inline MOE_TARGET
