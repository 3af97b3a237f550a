/// @file  A GGUF file, in one piece or split, with its tensors where they lie.
/// https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <limits>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include "moe/core/quantized.hpp"
#include "moe/core/types.hpp"
#include "moe/formats/ggml.hpp"
#include "moe/io/built_with.hpp"
#include "moe/io/error.hpp"
#include "moe/io/gguf_values.hpp"
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

/// What a file holds, tensors in its own order; or all parts of a split one.
struct GgufFile {
  GgufMetadata metadata = {};
  std::vector<Tensor> tensors = {};
};

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
template <class BuiltAs = detail::Flags>
GgufFile parse_gguf(const MappedFile& file, const std::string& name) {
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
template <class BuiltAs = detail::Flags>
GgufFile read_gguf(const std::filesystem::path& path, Access access = Access::mapped) {
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

#if defined(MOE_IO_COMPILED)
extern template GgufFile parse_gguf<detail::Flags>(const MappedFile&, const std::string&);
extern template GgufFile read_gguf<detail::Flags>(const std::filesystem::path&, Access);
#endif

}  // namespace moe::inline MOE_TARGET::io
