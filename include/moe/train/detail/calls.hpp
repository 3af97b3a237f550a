/// @file  Names by which a member finds the functions beside a part, and not itself.
#pragma once

#include <utility>

#include "moe/core/types.hpp"

namespace moe::inline MOE_TARGET::detail {

template <class... Args>
void call_forward(Args&&... args) {
  forward(std::forward<Args>(args)...);
}
template <class... Args>
void call_apply(Args&&... args) {
  apply(std::forward<Args>(args)...);
}
template <class... Args>
void call_backward(Args&&... args) {
  backward(std::forward<Args>(args)...);
}
template <class Part>
auto call_merged(const Part& part) {
  return merged(part);
}

}  // namespace moe::inline MOE_TARGET::detail
