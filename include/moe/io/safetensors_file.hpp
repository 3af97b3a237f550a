/// @file  One file in the safetensors format: 8 bytes of header length, a JSON header, the tensors' bytes without gaps.
/// https://github.com/huggingface/safetensors, README, "Format".
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <limits>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include "moe/core/types.hpp"
#include "moe/io/atomic_file.hpp"
#include "moe/io/built_with.hpp"
#include "moe/io/error.hpp"
#include "moe/io/impostors.hpp"
#include "moe/io/json.hpp"
#include "moe/io/mapped_file.hpp"
#include "moe/io/tensor.hpp"

namespace moe::inline MOE_TARGET::io {

/// Free text by key, the "__metadata__" of a file.
using Metadata = std::map<std::string, std::string>;

/// What one file holds, tensors in order of name.
struct TensorFile {
  std::vector<Tensor> tensors = {};
  Metadata metadata = {};
};

namespace detail {

/// Stands among the names of tensors in a header.
inline constexpr const char* metadata_key = "__metadata__";

/// The header's text, after the length that says where it ends.
inline std::string_view header_text(std::span<const std::byte> bytes, const std::string& file) {
  std::uint64_t length = 0;
  if (bytes.size() < sizeof length) {
    fail(file, ": has ", bytes.size(), " bytes, expected at least ", sizeof length, " for the header's length",
         if_unfinished);
  }
  std::memcpy(&length, bytes.data(), sizeof length);
  if (length > std::min<std::uint64_t>(max_json_bytes, bytes.size())) {
    if (const std::string is = impostor(bytes); !is.empty()) fail(file, ": ", is);
  }
  if (length > max_json_bytes) fail(file, ": header length is ", length, ", expected at most ", max_json_bytes);
  if (length > bytes.size() - sizeof length) {
    fail(file, ": header length is ", length, ", but only ", bytes.size() - sizeof length, " bytes follow",
         if_unfinished);
  }
  const std::string_view text(reinterpret_cast<const char*>(bytes.data()) + sizeof length, length);
  if (!text.starts_with('{')) fail(file, ": header does not start with '{'");
  return text;
}

/// How messages show what they did not expect, however long it is.
inline std::string describe(const nlohmann::json& value) {
  return value.is_structured() ? std::string("an ") + value.type_name() : value.dump();
}

inline const nlohmann::json& member(const nlohmann::json& object, const char* key, const std::string& whose) {
  if (!object.is_object()) fail(whose, " is ", describe(object), ", expected an object");
  const auto found = object.find(key);
  if (found == object.end()) fail(whose, " has no \"", key, "\"");
  return *found;
}

inline std::vector<Index> to_sizes(const nlohmann::json& list, const char* what, const std::string& whose) {
  if (!list.is_array()) fail(whose, " has ", what, " ", describe(list), ", expected an array");
  std::vector<Index> sizes;
  for (const nlohmann::json& size : list) {
    // Unsigned is what the parser makes of digits alone: no sign, no fraction, no exponent, less than 2^64.
    if (!size.is_number_unsigned() || size.get<std::uint64_t>() > std::uint64_t{std::numeric_limits<Index>::max()}) {
      fail(whose, " has ", describe(size), " in its ", what, ", expected a whole number less than 2^63");
    }
    sizes.push_back(size.get<Index>());
  }
  return sizes;
}

inline std::string to_text(const nlohmann::json& value, const char* what, const std::string& whose) {
  if (!value.is_string()) fail(whose, " has ", what, " ", describe(value), ", expected a string");
  return value.get<std::string>();
}

/// The tensor that `entry` of the header describes, somewhere in `data`.
inline Tensor parse_entry(const std::string& name, const nlohmann::json& entry, const MappedFile& data,
                          const std::string& file) {
  Tensor tensor{.name = name, .owner = data.owner, .file = file};
  const std::string whose = to_string(tensor);
  tensor.dtype = to_text(member(entry, "dtype", whose), "dtype", whose);
  tensor.shape = to_sizes(member(entry, "shape", whose), "shape", whose);
  const std::vector<Index> offsets = to_sizes(member(entry, "data_offsets", whose), "data_offsets", whose);
  if (offsets.size() != 2) fail(whose, " has ", offsets.size(), " data_offsets, expected 2");
  const auto begin = static_cast<std::size_t>(offsets[0]), end = static_cast<std::size_t>(offsets[1]);
  if (begin > end || end > data.bytes.size()) {
    fail(whose, " has data_offsets ", to_string(offsets), ", expected a range within ", data.bytes.size(),
         " bytes of data", begin <= end ? if_unfinished : "");
  }
  tensor.bytes = data.bytes.subspan(begin, end - begin);
  check_size(tensor);
  return tensor;
}

inline Metadata parse_metadata(const nlohmann::json& object, const std::string& file) {
  if (!object.is_object()) fail(file, ": __metadata__ is ", describe(object), ", expected an object");
  Metadata metadata;
  for (const auto& [key, value] : object.items()) {
    metadata[key] = to_text(value, ("\"" + key + "\"").c_str(), file + ": __metadata__");
  }
  return metadata;
}

/// Every byte of the data belongs to exactly one tensor, or two readers might disagree about the file.
inline void check_no_gaps(std::vector<Tensor> tensors, std::span<const std::byte> data, const std::string& file) {
  const auto range = [&](const Tensor& tensor) {
    const auto begin = static_cast<std::size_t>(tensor.bytes.data() - data.data());
    return std::pair(begin, begin + tensor.bytes.size());
  };
  std::ranges::sort(tensors, {}, range);
  std::size_t expected = 0;
  for (const Tensor& tensor : tensors) {
    const auto [begin, end] = range(tensor);
    if (begin != expected) {
      fail(to_string(tensor), " begins at byte ", begin, " of the data, expected ", expected,
           ", where the last one ends");
    }
    expected = end;
  }
  if (expected == data.size()) return;
  fail(file, ": tensors end at byte ", expected, " of the data, expected ", data.size(), ", where it ends");
}

}  // namespace detail

/// The tensors in the bytes of a file, used where they lie. `name` is the file's, for messages.
/// @throws Error if the bytes are not a whole safetensors file. A dtype that we have not heard of is no error here.
template <class BuiltAs = detail::Flags>
TensorFile parse_safetensors(const MappedFile& file, const std::string& name) {
  const std::string_view text = detail::header_text(file.bytes, name);
  const nlohmann::json header = parse_json(text, name);
  const MappedFile data{file.bytes.subspan(sizeof(std::uint64_t) + text.size()), file.owner};
  TensorFile result;
  for (const auto& [key, value] : header.items()) {
    if (key == detail::metadata_key) {
      result.metadata = detail::parse_metadata(value, name);
    } else {
      result.tensors.push_back(detail::parse_entry(key, value, data, name));
    }
  }
  detail::check_no_gaps(result.tensors, data.bytes, name);
  return result;
}

/// The tensors of a file.
/// @throws Error as open_file() and parse_safetensors() do.
template <class BuiltAs = detail::Flags>
TensorFile read_safetensors(const std::filesystem::path& path, Access access = Access::mapped) {
  return parse_safetensors(open_file(path, access), utf8(path));
}

namespace detail {

/// Wide elements first, so that no tensor needs a gap before it to be aligned; then by name.
inline std::vector<const Tensor*> in_file_order(const std::vector<Tensor>& tensors) {
  std::vector<const Tensor*> order;
  for (const Tensor& tensor : tensors) order.push_back(&tensor);
  std::ranges::sort(order, {},
                    [](const Tensor* t) { return std::pair(-dtype_bits(t->dtype), std::string_view(t->name)); });
  return order;
}

/// Takes a copy, to name in messages the file that is written and not the one that was read.
inline void check_writable(Tensor tensor, const std::string& file) {
  tensor.file = file;
  if (tensor.name == metadata_key) fail(file, ": no tensor can be called \"", metadata_key, "\"");
  if (dtype_bits(tensor.dtype) == 0) fail(to_string(tensor), " has unknown dtype ", tensor.dtype);
  check_size(tensor);
}

/// The JSON, padded with spaces so that what follows it in the file begins a line of the cache.
inline std::string header_of(const std::vector<const Tensor*>& tensors, const Metadata& metadata,
                             const std::string& file) {
  nlohmann::json header = nlohmann::json::object();
  if (!metadata.empty()) header[metadata_key] = metadata;
  std::size_t begin = 0;
  for (const Tensor* tensor : tensors) {
    check_writable(*tensor, file);
    const std::size_t end = begin + tensor->bytes.size();
    const nlohmann::json entry = {{"dtype", tensor->dtype}, {"shape", tensor->shape}, {"data_offsets", {begin, end}}};
    if (!header.emplace(tensor->name, entry).second) fail(file, ": two tensors are called \"", tensor->name, "\"");
    begin = end;
  }
  try {
    std::string text = header.dump();
    text.append(63 - (sizeof(std::uint64_t) + text.size() + 63) % 64, ' ');
    return text;
  } catch (const nlohmann::json::exception& error) {
    fail(file, ": a name or the metadata is not UTF-8: ", error.what());
  }
}

}  // namespace detail

/// Writes a file that holds these tensors, in any order, and this metadata. Whole or not at all: the tensors may even
/// be those of the file that is replaced.
/// @throws Error if the file cannot be written, or a tensor's name is taken, its dtype unknown, its size not its
/// shape's.
template <class BuiltAs = detail::Flags>
void write_safetensors(const std::filesystem::path& path, const std::vector<Tensor>& tensors,
                       const Metadata& metadata = {}) {
  const std::vector<const Tensor*> order = detail::in_file_order(tensors);
  const std::string header = detail::header_of(order, metadata, utf8(path));
  if (header.size() > max_json_bytes) {
    fail(utf8(path), ": header would have ", header.size(), " bytes, expected at most ", max_json_bytes);
  }
  const std::uint64_t length = header.size();
  std::vector<std::span<const std::byte>> pieces = {std::as_bytes(std::span(&length, 1)),
                                                    std::as_bytes(std::span(header))};
  for (const Tensor* tensor : order) pieces.push_back(tensor->bytes);
  write_atomically(path, pieces);
}

#if defined(MOE_IO_COMPILED)
extern template TensorFile parse_safetensors<detail::Flags>(const MappedFile&, const std::string&);
extern template TensorFile read_safetensors<detail::Flags>(const std::filesystem::path&, Access);
extern template void write_safetensors<detail::Flags>(const std::filesystem::path&, const std::vector<Tensor>&,
                                                      const Metadata&);
#endif

}  // namespace moe::inline MOE_TARGET::io
