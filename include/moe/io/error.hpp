/// @file  The exception for a file that is missing, unreadable or not what it claims to be.
#pragma once

#include <cstddef>
#include <filesystem>
#include <locale>
#include <sstream>
#include <stdexcept>
#include <string>
#include <string_view>

#include "moe/core/target.hpp"

namespace moe::inline MOE_TARGET::io {

/// what() names the file, the tensor if there is one, what was found, what was expected.
struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// Longer messages are cut, and end with "…": what a damaged file says of itself may be megabytes.
inline constexpr std::size_t max_message_bytes = 1000;

/// No longer than that: cut behind a word, or, where there is none near, behind a letter.
inline std::string without_its_end(std::string message) {
  constexpr std::string_view cut = "…";
  if (message.size() <= max_message_bytes) return message;
  std::size_t end = max_message_bytes - cut.size();
  if (const std::size_t space = message.rfind(' ', end); space != message.npos && space + 100 > end) {
    end = message.find_last_not_of(" ,;:", space) + 1;
  }
  while (end > 0 && (message[end] & 0xC0) == 0x80) --end;  // within a letter of UTF-8
  return message.replace(end, message.npos, cut);
}

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
  throw Error(without_its_end(message.str()));
}

}  // namespace moe::inline MOE_TARGET::io
