/// @file  A GGUF file, in one piece or split: keys with their values, tensors where they lie.
/// https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <limits>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include "moe/core/quantized.hpp"
#include "moe/core/types.hpp"
#include "moe/formats/ggml.hpp"
#include "moe/io/error.hpp"
#include "moe/io/impostors.hpp"
#include "moe/io/mapped_file.hpp"
#include "moe/io/tensor.hpp"

namespace moe::inline MOE_TARGET::io {

/// Bytes of a tensor of a type of ggml's.
/// @throws Error naming the tensor, if its rows are no whole number of blocks, or it is too large for memory.
inline std::size_t ggml_bytes(const Tensor& tensor, const GgmlType& type) {
  const Index count = element_count(tensor), row = tensor.shape.empty() ? 1 : tensor.shape.back();
  if (row % type.numbers != 0) {
    fail(to_string(tensor), " has rows of ", row, " numbers, expected a multiple of ", type.numbers, ", the block of ",
         type.name);
  }
  return std::size_t(count / type.numbers * type.bytes);
}

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

inline const GgufValue* find_key(const GgufMetadata& metadata, std::string_view key) {
  const auto found = std::ranges::find(metadata, key, &GgufEntry::key);  ///< What a key says; null if it is not there.
  return found == metadata.end() ? nullptr : &found->value;
}

/// What a file holds, tensors in its own order; or all parts of a split one.
struct GgufFile {
  GgufMetadata metadata = {};
  std::vector<Tensor> tensors = {};
};

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

namespace detail {

inline constexpr const char* alignment_key = "general.alignment";
inline constexpr std::uint32_t usual_alignment = 32;

/// The next multiple of the alignment.
constexpr std::uint64_t align_up(std::uint64_t at, std::uint64_t alignment) {
  return (at + alignment - 1) / alignment * alignment;
}

/// Of the tensors' bytes in the file.
inline std::uint32_t alignment_of(const GgufMetadata& metadata, const std::string& file) {
  const GgufValue* const said = find_key(metadata, alignment_key);
  if (said == nullptr) return usual_alignment;
  if (said->type != GgufType::u32) {
    fail(file, ": ", alignment_key, " has type ", std::uint32_t(said->type), ", expected ",
         std::uint32_t(GgufType::u32), ", a whole number in 32 bits");
  }
  const auto alignment = to_json(*said).get<std::uint32_t>();
  if (!std::has_single_bit(alignment)) fail(file, ": ", alignment_key, " is ", alignment, ", expected a power of two");
  return alignment;
}

inline void check_magic(GgufCursor& cursor, std::span<const std::byte> all, const std::string& file) {
  const auto magic = cursor.bytes(4, "a magic");
  const std::string_view text(reinterpret_cast<const char*>(magic.data()), magic.size());
  constexpr std::string_view big_endian =
      "is big-endian, and little-endian files are read here: convert it by gguf_convert_endian";
  if (text == "FUGG") fail(file, ": ", big_endian);
  if (text != "GGUF") {
    const std::string is = impostor(all);
    if (!is.empty()) fail(file, ": ", is);
    fail(file, ": does not begin with \"GGUF\": is it a GGUF file?");
  }
  const auto version = cursor.number<std::uint32_t>("a version");
  if (version != 0 && version % 65536 == 0) fail(file, ": ", big_endian);
  if (version != 2 && version != 3) fail(file, ": is of GGUF version ", version, ", expected 2 or 3");
}

inline GgufMetadata parse_entries(GgufCursor& cursor, std::uint64_t count) {
  GgufMetadata metadata;
  std::set<std::string> keys;
  for (std::uint64_t i = 0; i < count; ++i) {
    cursor.be_about("key " + std::to_string(i));
    std::string key = cursor.name("name");
    cursor.be_about("key \"" + key + "\"");
    if (!keys.insert(key).second) cursor.complain(" appears twice");
    GgufValue value = cursor.value();
    metadata.push_back({std::move(key), std::move(value)});
  }
  return metadata;
}

/// A tensor without its bytes, and where they begin in the data.
struct GgufEntryOfTensor {
  Tensor tensor;
  std::uint64_t offset = 0;
  std::size_t bytes = 0;
};

inline GgufEntryOfTensor parse_tensor(GgufCursor& cursor, std::uint64_t number, const MappedFile& file,
                                      const std::string& name) {
  cursor.be_about("tensor " + std::to_string(number));
  GgufEntryOfTensor entry{.tensor = {.name = cursor.name("name"), .owner = file.owner, .file = name}};
  Tensor& tensor = entry.tensor;
  cursor.be_about("tensor \"" + tensor.name + "\"");
  constexpr std::uint32_t most_dimensions = 4;
  const auto dimensions = cursor.number<std::uint32_t>("a number of dimensions");
  if (dimensions > most_dimensions)
    cursor.complain(" has ", dimensions, " dimensions, expected at most ", most_dimensions);
  for (std::uint32_t i = 0; i < dimensions; ++i) {
    const auto size = cursor.number<std::uint64_t>("a size");
    if (size > std::uint64_t(std::numeric_limits<Index>::max())) {
      cursor.complain(" has size ", size, " in dimension ", i, ", expected less than 2^63");
    }
    tensor.shape.insert(tensor.shape.begin(), Index(size));  // files have the innermost first
  }
  const auto type_number = cursor.number<std::uint32_t>("a type");
  const GgmlType* const type = find_ggml_type(type_number);
  if (type == nullptr) {
    cursor.complain(" has type ", type_number,
                    ", which is none of ggml's that are known: take a file of llama.cpp's types");
  }
  if (type->reason == codes::is_removed || type->reason == codes::of_ik_llama) {
    cursor.complain(" has type ", type_number, ", ", type->name, ": ", type->reason);
  }
  tensor.dtype = type->name;
  entry.offset = cursor.number<std::uint64_t>("an offset");
  entry.bytes = ggml_bytes(tensor, *type);
  return entry;
}

/// The same with its matrices, if its numbers are coded.
inline Tensor with_matrices(Tensor tensor) {
  const GgmlType& type = *find_ggml_type(tensor.dtype);
  if (type.format == nullptr || type.numbers == 1 || tensor.shape.empty()) return tensor;
  const Index cols = tensor.shape.back(), row_bytes = cols / type.numbers * type.bytes;
  const Index rows = tensor.shape.size() > 1 ? tensor.shape[tensor.shape.size() - 2] : 1;
  const Index count = rows * cols > 0 ? element_count(tensor) / (rows * cols) : 0;
  std::vector<QuantizedMatrix> matrices;
  for (Index i = 0; i < count; ++i) {
    matrices.emplace_back(*type.format, rows, cols, BytePlane{tensor.bytes.data() + i * rows * row_bytes, row_bytes});
  }
  tensor.coded = std::make_shared<const std::vector<QuantizedMatrix>>(std::move(matrices));
  return tensor;
}

/// Every byte of the data belongs to exactly one tensor, or is there for alignment, or two readers might disagree about
/// the file.
inline void place_tensors(std::vector<GgufEntryOfTensor>& entries, std::span<const std::byte> data,
                          std::uint32_t alignment, const std::string& file) {
  std::vector<GgufEntryOfTensor*> order;
  for (GgufEntryOfTensor& entry : entries) order.push_back(&entry);
  std::ranges::sort(order, {}, [](const auto* entry) { return std::pair(entry->offset, entry->bytes); });
  std::uint64_t end = 0;
  for (GgufEntryOfTensor* const entry : order) {
    const std::uint64_t expected = align_up(end, alignment);
    const std::string whose = to_string(entry->tensor);
    if (entry->offset % alignment != 0) {
      fail(whose, " begins at byte ", entry->offset, " of the data, expected a multiple of the alignment, ", alignment);
    }
    if (entry->offset > data.size() || entry->bytes > data.size() - entry->offset) {
      fail(whose, " has ", entry->bytes, " bytes from byte ", entry->offset, " of the data on, which has ", data.size(),
           if_unfinished);
    }
    if (entry->offset != expected) {
      fail(whose, " begins at byte ", entry->offset, " of the data, expected ", expected, ", where the last one ends");
    }
    entry->tensor.bytes = data.subspan(std::size_t(entry->offset), entry->bytes);
    end = entry->offset + entry->bytes;
  }
  if (data.size() > align_up(end, alignment)) {
    fail(file, ": tensors end at byte ", end, " of the data, expected ", data.size(), ", where it ends");
  }
}

}  // namespace detail

/// What is in the bytes of a file that is not split, or of one part. `name` is the file's, for messages.
/// @throws Error if the bytes are no whole GGUF file of version 2 or 3, or have types that are not ggml's.
inline GgufFile parse_gguf(const MappedFile& file, const std::string& name) {
  detail::GgufCursor cursor(file, name);
  detail::check_magic(cursor, file.bytes, name);
  constexpr std::size_t least_of_tensor = 24, least_of_key = 13;  // bytes
  const std::uint64_t num_tensors = cursor.count("its number of tensors", least_of_tensor);
  const std::uint64_t num_keys = cursor.count("its number of keys", least_of_key);
  GgufFile result{.metadata = detail::parse_entries(cursor, num_keys)};
  const std::uint32_t alignment = detail::alignment_of(result.metadata, name);
  std::vector<detail::GgufEntryOfTensor> entries;
  std::set<std::string> names;
  for (std::uint64_t i = 0; i < num_tensors; ++i) {
    entries.push_back(detail::parse_tensor(cursor, i, file, name));
    const Tensor& tensor = entries.back().tensor;
    if (!names.insert(tensor.name).second) fail(to_string(tensor), " appears twice");
  }
  const std::uint64_t first = std::min<std::uint64_t>(detail::align_up(cursor.at(), alignment), file.bytes.size());
  detail::place_tensors(entries, file.bytes.subspan(std::size_t(first)), alignment, name);
  for (auto& entry : entries) result.tensors.push_back(detail::with_matrices(std::move(entry.tensor)));
  return result;
}

namespace detail {

/// The number at a key, of any type of whole numbers; none if there is none.
inline std::optional<Index> whole_number(const GgufMetadata& metadata, std::string_view key, const std::string& file) {
  const GgufValue* const value = find_key(metadata, key);
  if (value == nullptr) return std::nullopt;
  const bool is_one = value->type != GgufType::array && value->type != GgufType::text;
  const nlohmann::json number = is_one ? to_json(*value) : nlohmann::json();
  if (!number.is_number_integer() || number.get<double>() < 0 || number.get<double>() > INT32_MAX) {
    fail(file, ": ", key, " is ",
         is_one                          ? number.dump()
         : value->type == GgufType::text ? "a text"
                                         : "an array",
         ", expected a whole number from 0 to ", INT32_MAX);
  }
  return number.get<Index>();
}

/// "model-00002-of-00003.gguf"
inline std::string gguf_part_name(const std::string& stem, Index part, Index count) {
  char end[64];
  std::snprintf(end, sizeof end, "-%05lld-of-%05lld.gguf", static_cast<long long>(part), static_cast<long long>(count));
  return stem + end;
}

/// What one part says of the split.
struct GgufSplit {
  Index number, count;  // from 0
};
inline GgufSplit split_of(const GgufMetadata& metadata, const std::string& file) {
  return {whole_number(metadata, "split.no", file).value_or(0),
          whole_number(metadata, "split.count", file).value_or(1)};
}

/// Other parts say nothing that the first does not say.
inline void check_same_keys(const GgufMetadata& first, const GgufMetadata& part, const std::string& file) {
  for (const auto& [key, value] : part) {
    if (key.starts_with("split.") || key == alignment_key) continue;
    const GgufValue* const same = find_key(first, key);
    if (same == nullptr || same->type != value.type || same->element != value.element ||
        !std::ranges::equal(same->bytes, value.bytes)) {
      fail(file, ": key \"", key, "\" is not in the first part, or says something else there");
    }
  }
}

}  // namespace detail

/// What is in a file; if it is one part of several ("model-00001-of-00003.gguf", any of them), in all, with the keys of
/// the first.
/// @throws Error as open_file() and parse_gguf() do; or if parts are missing, or do not belong together.
inline GgufFile read_gguf(const std::filesystem::path& path, Access access = Access::mapped) {
  const std::string name = utf8(path);
  GgufFile given = parse_gguf(open_file(path, access), name);
  const auto [number, count] = detail::split_of(given.metadata, name);
  if (count <= 1 && number == 0) return given;
  const std::string file = utf8(path.filename()), end = detail::gguf_part_name("", number + 1, count);
  if (number >= count || !file.ends_with(end)) {
    fail(name, ": is part ", number, " of ", count, " by its split.no and split.count, expected a name that ends with ",
         end);
  }
  GgufFile all;
  std::set<std::string> names;
  for (Index i = 0; i < count; ++i) {
    const std::filesystem::path part_path =
        path.parent_path() /
        std::filesystem::path(detail::gguf_part_name(file.substr(0, file.size() - end.size()), i + 1, count));
    const std::string part_name = utf8(part_path);
    GgufFile part = i == number ? std::move(given) : parse_gguf(open_file(part_path, access), part_name);
    const detail::GgufSplit said = detail::split_of(part.metadata, part_name);
    if (said.number != i || said.count != count) {
      fail(part_name, ": says that it is part ", said.number, " of ", said.count, ", expected ", i, " of ", count);
    }
    if (i == 0) {
      all.metadata = std::move(part.metadata);
    } else {
      detail::check_same_keys(all.metadata, part.metadata, part_name);
    }
    for (Tensor& tensor : part.tensors) {
      if (!names.insert(tensor.name).second) fail(to_string(tensor), " is in an earlier part, too");
      all.tensors.push_back(std::move(tensor));
    }
  }
  const Index total = detail::whole_number(all.metadata, "split.tensors.count", name).value_or(std::ssize(all.tensors));
  if (total != std::ssize(all.tensors)) {
    fail(name, ": split.tensors.count is ", total, ", and the ", count, " parts have ", all.tensors.size());
  }
  return all;
}

}  // namespace moe::inline MOE_TARGET::io
