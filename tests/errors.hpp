/// @file  What a call complained of.
#pragma once

#include <stdexcept>
#include <string>

namespace moe::test {

/// The message of the std::invalid_argument that f throws.
template <class F>
std::string error_of(const F& f) {
  try {
    f();
  } catch (const std::invalid_argument& error) {
    return error.what();
  }
  return "no error";
}

}  // namespace moe::test
