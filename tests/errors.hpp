/// @file  What a call complained of.
#pragma once

#include <stdexcept>
#include <string>

namespace moe::test {

/// The message of the Error that f throws.
template <class Error = std::invalid_argument, class F>
std::string error_of(const F& f) {
  try {
    f();
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

}  // namespace moe::test
