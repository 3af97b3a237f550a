/// @file  Parses JSON that a stranger may have written.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include <nlohmann/json.hpp>

#include "moe/io/built_with.hpp"
#include "moe/io/error.hpp"
#include "moe/io/impostors.hpp"
#include "moe/io/mapped_file.hpp"

namespace moe::inline MOE_TARGET::io {

/// The reference implementation of safetensors refuses longer headers: MAX_HEADER_SIZE in its src/tensor.rs.
inline constexpr std::size_t max_json_bytes = 100'000'000;

/// A safetensors header has 3 levels, a config.json about 5. Deeper ones cost memory out of proportion to their text.
inline constexpr std::size_t max_json_depth = 32;

namespace detail {

/// Listens to the parser and throws at the first thing that is not JSON, or that JSON allows and we do not.
class JsonGuard {
 public:
  explicit JsonGuard(const std::string& file) : file_(file) {}

  bool start_object(std::size_t) { return enter(); }
  bool key(const std::string& key) {
    if (!keys_.back().insert(key).second) fail(file_, ": JSON key \"", key, "\" appears twice");
    return true;
  }
  bool end_object() { return leave(); }
  bool start_array(std::size_t) { return enter(); }
  bool end_array() { return leave(); }

  bool null() { return true; }
  bool boolean(bool) { return true; }
  bool number_integer(std::int64_t) { return true; }
  bool number_unsigned(std::uint64_t) { return true; }
  bool number_float(double, const std::string&) { return true; }
  bool string(const std::string&) { return true; }
  bool binary(const auto&) { return true; }  // of CBOR and the like; its type is not there before nlohmann-json 3.8

  bool parse_error(std::size_t, const std::string&, const nlohmann::json::exception& error) {
    fail(file_, ": not JSON: ", error.what());
  }

 private:
  bool enter() {
    if (keys_.size() == max_json_depth) fail(file_, ": JSON is nested deeper than ", max_json_depth, " levels");
    keys_.emplace_back();
    return true;
  }

  bool leave() {
    keys_.pop_back();
    return true;
  }

  std::string file_;
  std::vector<std::set<std::string>> keys_;  // of each object, outermost first, that is now open; arrays have none
};

}  // namespace detail

/// The JSON value that `text` is. `file` is for messages.
/// @throws Error if it is not JSON in UTF-8, longer or deeper than the limits above, or an object has a key twice.
template <class BuiltAs = detail::Flags>
nlohmann::json parse_json(std::string_view text, const std::string& file) {
  if (text.size() > max_json_bytes) {
    fail(file, ": JSON has ", text.size(), " bytes, expected at most ", max_json_bytes);
  }
  // The parser would take a zero byte for the end of the text.
  if (const std::size_t zero = text.find('\0'); zero != text.npos) fail(file, ": JSON has a zero byte at ", zero);
  // Twice over the text, because the parser's own callback takes time quadratic in the number of tensors.
  detail::JsonGuard guard(file);
  nlohmann::json::sax_parse(text.begin(), text.end(), &guard);
  return nlohmann::json::parse(text.begin(), text.end());
}

/// The JSON value that a file holds.
/// @throws Error as map_file() and parse_json() do; naming what it is instead, if that is known.
template <class BuiltAs = detail::Flags>
nlohmann::json read_json(const std::filesystem::path& path) {
  const MappedFile file = map_file(path);
  if (const std::string is = detail::impostor(file.bytes); !is.empty()) fail(utf8(path), ": ", is);
  return parse_json({reinterpret_cast<const char*>(file.bytes.data()), file.bytes.size()}, utf8(path));
}

namespace detail {

/// The same text with Infinity, -Infinity and NaN, which Python writes and JSON does not know, between quotation marks.
/// @param mark  to begin each of these with, so that without_quotes() can tell them from what was text before
inline std::string with_quoted_numbers(std::string_view text, std::string_view mark = "") {
  std::string quoted;
  bool in_string = false;
  for (std::size_t i = 0; i < text.size();) {
    std::string_view taken = text.substr(i, in_string && text[i] == '\\' ? 2 : 1);
    if (taken == "\"") in_string = !in_string;
    bool is_word = false;
    for (const std::string_view word : {"-Infinity", "Infinity", "NaN"}) {
      if (!in_string && !is_word && text.substr(i, word.size()) == word) taken = word, is_word = true;
    }
    quoted += is_word ? '"' + std::string(mark) + std::string(taken) + '"' : std::string(taken);
    i += taken.size();
  }
  return quoted;
}

/// Its inverse, of a mark that is not empty.
inline std::string without_quotes(std::string text, std::string_view mark) {
  for (const std::string_view word : {"-Infinity", "Infinity", "NaN"}) {
    const std::string quoted = '"' + std::string(mark) + std::string(word) + '"';
    for (std::size_t at = 0; (at = text.find(quoted, at)) != text.npos; at += word.size()) {
      text.replace(at, quoted.size(), word);
    }
  }
  return text;
}

}  // namespace detail

/// A file of settings as Python writes them: numbers that are not finite are the text "Infinity", "-Infinity" or "NaN".
/// @throws Error as read_json().
template <class BuiltAs = detail::Flags>
nlohmann::json read_settings(const std::filesystem::path& path) {
  const MappedFile file = read_file(path);
  if (const std::string is = detail::impostor(file.bytes); !is.empty()) fail(utf8(path), ": ", is);
  const std::string_view text(reinterpret_cast<const char*>(file.bytes.data()), file.bytes.size());
  if (text.size() > max_json_bytes)
    fail(utf8(path), ": JSON has ", text.size(), " bytes, expected at most ", max_json_bytes);
  return parse_json(detail::with_quoted_numbers(text), utf8(path));
}

#if defined(MOE_IO_COMPILED)
extern template nlohmann::json parse_json<detail::Flags>(std::string_view, const std::string&);
extern template nlohmann::json read_json<detail::Flags>(const std::filesystem::path&);
extern template nlohmann::json read_settings<detail::Flags>(const std::filesystem::path&);
#endif

}  // namespace moe::inline MOE_TARGET::io
