/// @file  Lists of numbers in whole registers.
#pragma once

#include <type_traits>

#include "moe/core/types.hpp"
#include "moe/kernels/lanes.hpp"
#include "moe/kernels/load_padded.hpp"

namespace moe::inline MOE_TARGET::kernels {

/// Calls f with one register of each of these lists, again and again until all numbers of all lists have had their
/// turn, and writes back those that are not const. The last registers are filled up with zeros: no number passes
/// through other instructions than its neighbours, so its bits depend neither on where it lies nor on what lies beside
/// it. A list may come twice, to be read and to be written.
template <class F, class... Number>
MOE_INLINE void for_each_register(Index size, const F& f, Number*... lists) {
  constexpr Index L = (lanes<std::remove_const_t<Number>> + ...) / Index(sizeof...(Number));  // all have as many
  const auto run = [&](Index first, const auto& load, const auto& write) __attribute__((always_inline)) {
    [&](auto... registers) __attribute__((always_inline)) {
      f(registers...);
      (write(lists + first, registers), ...);
    }(load(lists + first)...);
  };
  Index i = 0;
  for (; i + L <= size; i += L) {
    run(
        i, []<class T>(T* from) __attribute__((always_inline)) { return load_as<Lanes<std::remove_const_t<T>>>(from); },
        []<class T, class V>(T* to, const V& its) __attribute__((always_inline)) {
          if constexpr (!std::is_const_v<T>) store(to, its);
        });
  }
  if (i == size) return;
  run(
      i,
      [&]<class T>(T* from)
          __attribute__((always_inline)) { return load_padded<Lanes<std::remove_const_t<T>>>(from, size - i); },
      [&]<class T, class V>(T* to, const V& its) __attribute__((always_inline)) {
        if constexpr (!std::is_const_v<T>) store_part(to, its, size - i);
      });
}

}  // namespace moe::inline MOE_TARGET::kernels
