/// @file  Numbers in whole registers, as optimisers compute with them.
#pragma once

#include <algorithm>
#include <type_traits>

#include "moe/core/types.hpp"

namespace moe::inline MOE_TARGET {

inline constexpr Index block_size = 16;  // a multiple of every register's

template <class Scalar>
using Block = Eigen::Array<Scalar, block_size, 1>;  ///< So many numbers at a time, in registers.

/// Calls f with one block of each of these lists, again and again until all numbers of all lists have had their turn,
/// and writes back those that are not const. The last blocks are filled up with zeros: no number passes through other
/// instructions than its neighbours, so its bits depend neither on where it lies nor on what lies beside it.
template <class F, class... Number>
void for_each_block(Index size, const F& f, Number*... lists) {
  const auto run = [&](Index first, Index count, Block<std::remove_const_t<Number>>... blocks) {
    (std::copy_n(lists + first, count, blocks.data()), ...);
    f(blocks...);
    const auto write = [&]<class N>(N* list, const auto& block) {
      if constexpr (!std::is_const_v<N>) std::copy_n(block.data(), count, list + first);
    };
    (write(lists, blocks), ...);
  };
  Index first = 0;
  for (; first + block_size <= size; first += block_size) {
    run(first, block_size, Block<std::remove_const_t<Number>>()...);
  }
  if (first < size) run(first, size - first, Block<std::remove_const_t<Number>>::Zero()...);
}

}  // namespace moe::inline MOE_TARGET
