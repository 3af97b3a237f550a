/// @file  The keys of a GGUF file with their values.
/// https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include "moe/core/types.hpp"
#include "moe/io/error.hpp"
#include "moe/io/impostors.hpp"
#include "moe/io/mapped_file.hpp"

namespace moe::inline MOE_TARGET::io {

/// Of a value, by its number in files.
enum class GgufType : std::uint32_t { u8, i8, u16, i16, u32, i32, f32, boolean, text, array, u64, i64, f64 };

/// A value, or an array of them, as it lies in a file.
struct GgufValue {
  GgufType type = GgufType::u8;
  GgufType element = type;                // an array's; else the same
  std::uint64_t count = 1;                // an array's elements
  std::span<const std::byte> bytes = {};  // little-endian, one after the other; texts begin with their length in 64
                                          // bits, arrays within with type and number
  std::shared_ptr<const void> owner = {};
};

/// A key and what it says.
struct GgufEntry {
  std::string key;
  GgufValue value;
};

/// In the order of the file, each key once.
using GgufMetadata = std::vector<GgufEntry>;

/// What a key says; null if it is not there.
inline const GgufValue* find_key(const GgufMetadata& metadata, std::string_view key) {
  const auto found = std::ranges::find(metadata, key, &GgufEntry::key);
  return found == metadata.end() ? nullptr : &found->value;
}

namespace detail {

/// Of a number; 0 for texts and arrays.
constexpr std::size_t gguf_size(GgufType type) {
  switch (type) {
    case GgufType::u8:
    case GgufType::i8:
    case GgufType::boolean:
      return 1;
    case GgufType::u16:
    case GgufType::i16:
      return 2;
    case GgufType::u32:
    case GgufType::i32:
    case GgufType::f32:
      return 4;
    case GgufType::u64:
    case GgufType::i64:
    case GgufType::f64:
      return 8;
    case GgufType::text:
    case GgufType::array:
      break;
  }
  return 0;
}

/// What a C++ type is called in files.
template <class T>
constexpr GgufType gguf_type_of() {
  if constexpr (std::is_same_v<T, bool>) return GgufType::boolean;
  if constexpr (std::is_same_v<T, float>) return GgufType::f32;
  if constexpr (std::is_same_v<T, double>) return GgufType::f64;
  constexpr bool is_signed = std::is_signed_v<T>;
  if constexpr (sizeof(T) == 1) return is_signed ? GgufType::i8 : GgufType::u8;
  if constexpr (sizeof(T) == 2) return is_signed ? GgufType::i16 : GgufType::u16;
  if constexpr (sizeof(T) == 4) return is_signed ? GgufType::i32 : GgufType::u32;
  return is_signed ? GgufType::i64 : GgufType::u64;
}

/// f(T()), what a number is called in C++.
template <class F>
auto with_gguf_number(GgufType type, const F& f) {
  switch (type) {
    case GgufType::i8:
      return f(std::int8_t());
    case GgufType::u16:
      return f(std::uint16_t());
    case GgufType::i16:
      return f(std::int16_t());
    case GgufType::u32:
      return f(std::uint32_t());
    case GgufType::i32:
      return f(std::int32_t());
    case GgufType::f32:
      return f(float());
    case GgufType::boolean:
      return f(bool());
    case GgufType::u64:
      return f(std::uint64_t());
    case GgufType::i64:
      return f(std::int64_t());
    case GgufType::f64:
      return f(double());
    default:
      return f(std::uint8_t());
  }
}

/// Is it text that JSON, and so every message and list, can hold?
inline bool is_utf8(const std::string& text) {
  try {
    return !nlohmann::json(text).dump().empty();
  } catch (const nlohmann::json::exception&) {
    return false;
  }
}

/// Reads one thing after the other, and knows what it is about for complaints.
class GgufCursor {
 public:
  GgufCursor(const MappedFile& file, const std::string& name) : file_(file), name_(name) {}

  std::size_t at() const { return at_; }
  std::size_t left() const { return file_.bytes.size() - at_; }
  void go_to(std::size_t at) { at_ = at; }

  /// What is being read: `key "general.name"`.
  void be_about(std::string subject) { subject_ = std::move(subject); }

  template <class... Parts>
  [[noreturn]] void complain(const Parts&... parts) const {
    fail(name_, ": ", subject_, parts...);
  }

  std::span<const std::byte> bytes(std::uint64_t count, const char* what) {
    if (count > left()) {
      complain(" has ", what, " of ", count, " bytes at byte ", at_, ", but only ", left(), " bytes follow",
               if_unfinished);
    }
    at_ += std::size_t(count);
    return file_.bytes.subspan(at_ - std::size_t(count), std::size_t(count));
  }

  template <class T>
  T number(const char* what) {
    T value;
    std::memcpy(&value, bytes(sizeof value, what).data(), sizeof value);
    return value;
  }

  /// @throws Error if there is not room for so many of at least so many bytes each: nothing is set aside before.
  std::uint64_t count(const char* what, std::size_t least_bytes) {
    const auto count = number<std::uint64_t>(what);
    if (count > left() / least_bytes) {
      complain(" has ", count, " as ", what, ", but only ", left(), " bytes follow, expected at least ", least_bytes,
               " for each", if_unfinished);
    }
    return count;
  }

  std::string text(const char* what) {
    const auto length = number<std::uint64_t>(what);
    const auto text = bytes(length, what);
    return {reinterpret_cast<const char*>(text.data()), text.size()};
  }

  /// A name that can be shown.
  std::string name(const char* what) {
    std::string text = this->text(what);
    if (text.empty()) complain(" has an empty ", what, ", expected a name");
    const auto is_control = [](char c) { return static_cast<unsigned char>(c) < ' ' || c == 127; };
    if (std::ranges::any_of(text, is_control) || !is_utf8(text)) {
      complain(" has a ", what, " at byte ", at_ - text.size(), " that is not UTF-8, or has control characters");
    }
    return text;
  }

  GgufType type(const char* what) {
    const auto number = this->number<std::uint32_t>(what);
    if (number > std::uint32_t(GgufType::f64)) complain(" has ", what, " ", number, ", expected 0 to 12");
    return static_cast<GgufType>(number);
  }

  GgufValue value() {
    GgufValue value{.type = type("a type"), .owner = file_.owner};
    value.element = value.type;
    if (value.type == GgufType::array)
      value.element = type("a type of elements"), value.count = elements(value.element);
    const std::size_t first = at_;
    pass(value.element, value.count, value.type == GgufType::array ? 1 : 0);
    value.bytes = file_.bytes.subspan(first, at_ - first);
    return value;
  }

 private:
  /// Of a text at least its length, of an array at least its type and number.
  static constexpr std::size_t least_size(GgufType type) {
    return type == GgufType::text ? 8 : type == GgufType::array ? 12 : gguf_size(type);
  }
  std::uint64_t elements(GgufType type) { return count("its number of elements", least_size(type)); }

  /// @param depth  in how many arrays
  void pass(GgufType type, std::uint64_t count, int depth) {
    if (type == GgufType::text) {
      for (std::uint64_t i = 0; i < count; ++i) bytes(number<std::uint64_t>("the length of a text"), "a text");
    } else if (type == GgufType::array) {
      constexpr int deepest = 2;
      if (depth == deepest) complain(" is nested deeper than ", deepest, " arrays");
      for (std::uint64_t i = 0; i < count; ++i) {
        const GgufType inner = this->type("a type of elements");
        const std::uint64_t inner_count = elements(inner);
        pass(inner, inner_count, depth + 1);
      }
    } else {
      const auto values = bytes(count * gguf_size(type), "a value");  // no overflow: there is room for the elements
      if (type != GgufType::boolean) return;
      for (const std::byte value : values) {
        if (value > std::byte(1)) complain(" has the flag ", std::to_integer<int>(value), ", expected 0 or 1");
      }
    }
  }

  const MappedFile& file_;
  const std::string& name_;
  std::size_t at_ = 0;
  std::string subject_ = "the header";
};

inline nlohmann::json element_to_json(GgufType type, GgufCursor& cursor) {
  if (type == GgufType::text) return cursor.text("a text");
  if (type == GgufType::array) {
    const GgufType inner = cursor.type("a type");
    const auto count = cursor.number<std::uint64_t>("a number");
    nlohmann::json all = nlohmann::json::array();
    for (std::uint64_t i = 0; i < count; ++i) all.push_back(element_to_json(inner, cursor));
    return all;
  }
  return with_gguf_number(type, [&]<class T>(T) -> nlohmann::json { return cursor.number<T>("a number"); });
}

}  // namespace detail

/// A value as JSON: numbers, flags, texts, and lists of them. (What is not UTF-8 stays as it is, for dump() to refuse.)
inline nlohmann::json to_json(const GgufValue& value) {
  const MappedFile bytes{value.bytes, value.owner};
  const std::string nobody;
  detail::GgufCursor cursor(bytes, nobody);
  if (value.type != GgufType::array) return detail::element_to_json(value.type, cursor);
  nlohmann::json all = nlohmann::json::array();
  for (std::uint64_t i = 0; i < value.count; ++i) all.push_back(detail::element_to_json(value.element, cursor));
  return all;
}

/// A number, flag or text to be written.
template <class T>
GgufValue gguf_value(const T& value) {
  const auto memory = std::make_shared<std::vector<std::byte>>();
  const auto add = [&](const void* from, std::size_t size) {
    const auto* const first = static_cast<const std::byte*>(from);
    memory->insert(memory->end(), first, first + size);
  };
  GgufValue made;
  if constexpr (std::is_arithmetic_v<T>) {
    made.type = detail::gguf_type_of<T>();
    add(&value, sizeof value);
  } else {
    const std::string_view text(value);
    const std::uint64_t length = text.size();
    made.type = GgufType::text;
    add(&length, sizeof length);
    add(text.data(), text.size());
  }
  made.element = made.type;
  made.bytes = *memory;
  made.owner = memory;
  return made;
}

/// A list of them.
template <class T>
GgufValue gguf_list(const std::vector<T>& values) {
  const auto memory = std::make_shared<std::vector<std::byte>>();
  GgufValue made{.type = GgufType::array, .element = gguf_value(T()).type, .count = values.size()};
  for (const auto& value : values) {
    const GgufValue one = gguf_value<T>(value);
    memory->insert(memory->end(), one.bytes.begin(), one.bytes.end());
  }
  made.bytes = *memory;
  made.owner = memory;
  return made;
}

}  // namespace moe::inline MOE_TARGET::io
