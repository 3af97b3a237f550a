/// @file  Arithmetic on number after number, whose roundings do not depend on where they lie.
#pragma once

#include <algorithm>
#include <tuple>
#include <type_traits>

#include "moe/types.hpp"

namespace moe {

/// f(a, b, …) on arrays of one fixed size, which hold numbers [0, size) of each argument, block after block, the last
/// one filled up with 0; what f writes goes back, but for a pointer to const. A compiler fuses a multiplication and an
/// addition in a register and not in what is left over beside it, or the other way round: so nothing is left over, and
/// a parameter learns the same to the last bit wherever it lies, beside which others, on whichever rank.
template <class F, class... Numbers>
void in_blocks(Index size, const F& f, Numbers*... numbers) {
  constexpr Index block_size = 64;
  for (Index first = 0; first < size; first += block_size) {
    const Index count = std::min(block_size, size - first);
    const auto load = [&]<class S>(const S* from) {
      Eigen::Array<S, block_size, 1> block;
      if (count == block_size) {
        block = Eigen::Map<const Eigen::Array<S, block_size, 1>>(from + first);
      } else {
        std::fill(std::copy_n(from + first, count, block.data()), block.data() + block_size, S(0));
      }
      return block;
    };
    const auto store = [&]<class S>(const auto& block, S* to) {
      if constexpr (!std::is_const_v<S>) {
        if (count == block_size) {
          Eigen::Map<Eigen::Array<S, block_size, 1>>(to + first) = block;
        } else {
          std::copy_n(block.data(), count, to + first);
        }
      }
    };
    std::tuple blocks(load(numbers)...);
    std::apply(
        [&](auto&... block) {
          f(block...);
          (store(block, numbers), ...);
        },
        blocks);
  }
}

}  // namespace moe
