/// @file  Writes a GGUF file, whole or not at all.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <functional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "moe/core/types.hpp"
#include "moe/formats/ggml.hpp"
#include "moe/io/atomic_file.hpp"
#include "moe/io/error.hpp"
#include "moe/io/gguf.hpp"
#include "moe/io/mapped_file.hpp"
#include "moe/io/tensor.hpp"

namespace moe::inline MOE_TARGET::io {

namespace detail {

/// Bytes, one after the other.
class GgufBytes {
 public:
  void add(std::span<const std::byte> bytes) { all_.insert(all_.end(), bytes.begin(), bytes.end()); }

  template <class T>
  void number(T value) {
    add(std::as_bytes(std::span(&value, 1)));
  }

  void text(std::string_view text) {
    number(std::uint64_t(text.size()));
    add(std::as_bytes(std::span(text)));
  }

  void pad(std::size_t alignment) { all_.resize(std::size_t(align_up(all_.size(), alignment))); }

  const std::vector<std::byte>& all() const { return all_; }

 private:
  std::vector<std::byte> all_;
};

/// llama.cpp has no room for longer ones: GGML_MAX_NAME of ggml.h.
inline constexpr std::size_t longest_tensor_name = 63;

/// @throws Error if a reader would refuse the key, or not see the value end where it ends.
inline std::vector<std::byte> gguf_bytes(const GgufEntry& entry, const std::string& file) {
  const auto& [key, value] = entry;
  GgufBytes bytes;
  bytes.text(key);
  bytes.number(value.type);
  if (value.type == GgufType::array) {
    bytes.number(value.element);
    bytes.number(value.count);
  }
  bytes.add(value.bytes);
  const MappedFile memory{bytes.all(), {}};
  GgufCursor cursor(memory, file);
  cursor.be_about("key \"" + key + "\"");
  cursor.name("name");
  cursor.value();
  if (cursor.left() > 0) cursor.complain(" has ", cursor.left(), " bytes after its value");
  return bytes.all();
}

/// All that comes before the tensors' bytes.
inline std::vector<std::byte> gguf_header(const GgufMetadata& metadata, const std::vector<Tensor>& tensors,
                                          std::uint32_t alignment, const std::string& file) {
  GgufBytes header;
  header.add(std::as_bytes(std::span(std::string_view("GGUF"))));
  header.number(std::uint32_t(3));
  header.number(std::uint64_t(tensors.size()));
  header.number(std::uint64_t(metadata.size()));
  for (const GgufEntry& entry : metadata) header.add(gguf_bytes(entry, file));
  std::uint64_t offset = 0;
  for (Tensor tensor : tensors) {
    tensor.file = file;
    const GgmlType* const type = find_ggml_type(tensor.dtype);
    if (type == nullptr || type->numbers == 0) {
      fail(to_string(tensor), " has dtype ", tensor.dtype, ", which GGUF has no number for");
    }
    if (tensor.name.size() > longest_tensor_name) {
      fail(to_string(tensor), " has a name of ", tensor.name.size(), " bytes, expected at most ", longest_tensor_name);
    }
    header.text(tensor.name);
    header.number(std::uint32_t(tensor.shape.size()));
    for (auto size = tensor.shape.rbegin(); size != tensor.shape.rend(); ++size) header.number(std::uint64_t(*size));
    header.number(type->number);
    header.number(offset);
    offset = align_up(offset + ggml_bytes(tensor, *type), alignment);
  }
  header.pad(alignment);
  return header.all();
}

/// @throws Error if a reader would refuse the header: a key or name twice, or that is none; a value that is not whole.
inline void check_header(std::span<const std::byte> header, std::size_t num_keys, std::size_t num_tensors,
                         const std::string& file) {
  const MappedFile bytes{header, {}};
  GgufCursor cursor(bytes, file);
  check_magic(cursor, header, file);
  cursor.number<std::uint64_t>("a number");
  cursor.number<std::uint64_t>("a number");
  alignment_of(parse_entries(cursor, num_keys), file);
  std::set<std::string> names;
  for (std::size_t i = 0; i < num_tensors; ++i) {
    const Tensor tensor = parse_tensor(cursor, i, bytes, file).tensor;
    if (!names.insert(tensor.name).second) fail(to_string(tensor), " is given twice");
  }
}

}  // namespace detail

/// Writes a file of version 3 that holds these keys and tensors, in this order; tensors are of ggml's types, their
/// bytes, which need not be there yet, as these have them.
/// @param metadata     the key general.alignment, 32 if it is not there, is that of the tensors
/// @param write_bytes  write_bytes(i, append) gives those of tensor i, in calls of append(bytes)
/// @param check        as of write_file_atomically()
/// @throws Error if the file cannot be written, a name or key is given twice or is none, or bytes are not as many as
///         shape and type say; or whatever write_bytes() throws. A file that was there is then as it was.
template <class F>
void write_gguf(const std::filesystem::path& path, const GgufMetadata& metadata, const std::vector<Tensor>& tensors,
                const F& write_bytes, const std::function<void(const std::filesystem::path&)>& check = {}) {
  const std::string file = utf8(path);
  const std::uint32_t alignment = detail::alignment_of(metadata, file);
  const std::vector<std::byte> header = detail::gguf_header(metadata, tensors, alignment, file);
  detail::check_header(header, metadata.size(), tensors.size(), file);
  const std::vector<std::byte> zeros(alignment);
  write_file_atomically(
      path,
      [&](const auto& append) {
        append(header);
        for (std::size_t i = 0; i < tensors.size(); ++i) {
          std::size_t size = 0;
          write_bytes(i, [&](std::span<const std::byte> bytes) {
            append(bytes);
            size += bytes.size();
          });
          Tensor tensor = tensors[i];
          tensor.file = file;
          if (const std::size_t expected = ggml_bytes(tensor, *find_ggml_type(tensor.dtype)); size != expected) {
            fail(to_string(tensor), " has ", size, " bytes, expected ", expected, " for shape ",
                 to_string(tensor.shape), " of ", tensor.dtype);
          }
          append(std::span(zeros).first(std::size_t(detail::align_up(size, alignment) - size)));
        }
      },
      check);
}

/// The same of tensors whose bytes are there; they may even be those of the file that is replaced.
inline void write_gguf(const std::filesystem::path& path, const GgufMetadata& metadata,
                       const std::vector<Tensor>& tensors) {
  write_gguf(path, metadata, tensors, [&](std::size_t i, const auto& append) { append(tensors[i].bytes); });
}

}  // namespace moe::inline MOE_TARGET::io
