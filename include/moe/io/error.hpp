/// @file  The exception for a file that is missing, unreadable or not what it claims to be.
#pragma once

#include <cstddef>
#include <filesystem>
#include <locale>
#include <sstream>
#include <stdexcept>
#include <string>

#include "moe/core/target.hpp"

namespace moe::inline MOE_TARGET::io {

/// what() names the file, the tensor if there is one, what was found, what was expected.
struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// Longer messages are cut: what a damaged file says of itself may be megabytes.
inline constexpr std::size_t max_message_bytes = 1000;

/// A name for messages. (On Windows path.string() throws where its code page lacks a letter.)
inline std::string utf8(const std::filesystem::path& path) {
  const std::u8string text = path.u8string();
  return {text.begin(), text.end()};
}

/// @throws Error whose message is these parts, one after the other.
template <class... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  std::ostringstream message;
  message.imbue(std::locale::classic());  // 1024, not 1,024
  (message << ... << parts);
  throw Error(message.str().substr(0, max_message_bytes));
}

}  // namespace moe::inline MOE_TARGET::io
