/// @file  Numbers as text that no locale changes.
#pragma once

#include <array>
#include <charconv>
#include <string>
#include <string_view>

#include "moe/core/target.hpp"

namespace moe::inline MOE_TARGET::detail {

/// The shortest decimal that reads back as the same number: 2048, 0.1, 1e+300, nan, inf.
inline std::string shortest(double number) {
  std::array<char, 32> buffer;
  return {buffer.data(), std::to_chars(buffer.data(), buffer.data() + buffer.size(), number).ptr};
}

/// With so many digits behind the point; "-" for what is not a number.
inline std::string fixed(double number, int digits) {
  if (number != number) return "-";
  std::array<char, 350> buffer;
  char* const end = buffer.data() + buffer.size();
  return {buffer.data(), std::to_chars(buffer.data(), end, number, std::chars_format::fixed, digits).ptr};
}

/// To so many digits: 0.12, 8.5e-05.
inline std::string rounded(double number, int digits) {
  std::array<char, 32> buffer;
  char* const end = buffer.data() + buffer.size();
  return {buffer.data(), std::to_chars(buffer.data(), end, number, std::chars_format::general, digits).ptr};
}

/// Length of the UTF-8 sequence that text begins with; 0 if it begins with none. (No surrogates, nothing overlong.)
inline std::size_t utf8_length(std::string_view text) {
  const auto byte = [&](std::size_t i) { return i < text.size() ? static_cast<unsigned char>(text[i]) : 0U; };
  const auto continues = [&](std::size_t i, unsigned low = 0x80, unsigned high = 0xbf) {
    return byte(i) >= low && byte(i) <= high;
  };
  const unsigned first = byte(0);
  if (first < 0x80) return text.empty() ? 0 : 1;
  if (first >= 0xc2 && first <= 0xdf) return continues(1) ? 2 : 0;
  if (first >= 0xe0 && first <= 0xef) {
    return continues(1, first == 0xe0 ? 0xa0 : 0x80, first == 0xed ? 0x9f : 0xbf) && continues(2) ? 3 : 0;
  }
  if (first >= 0xf0 && first <= 0xf4) {
    return continues(1, first == 0xf0 ? 0x90 : 0x80, first == 0xf4 ? 0x8f : 0xbf) && continues(2) && continues(3) ? 4
                                                                                                                  : 0;
  }
  return 0;
}

/// The text with each byte that is not UTF-8 replaced by U+FFFD, and each character c by escape(c) where that is not
/// empty.
template <class Escape>
std::string escaped(std::string_view text, const Escape& escape) {
  std::string result;
  while (!text.empty()) {
    const std::size_t length = utf8_length(text);
    const std::string instead = length == 1 ? escape(text.front()) : length == 0 ? "\uFFFD" : "";
    const std::size_t taken = length == 0 ? 1 : length;
    result += instead.empty() ? std::string(text.substr(0, taken)) : instead;
    text.remove_prefix(taken);
  }
  return result;
}

}  // namespace moe::inline MOE_TARGET::detail
