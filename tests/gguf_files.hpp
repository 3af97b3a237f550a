/// @file  GGUF files made by hand, byte by byte, with nothing of the library's writer.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "moe/io/mapped_file.hpp"

namespace moe::test {

/// Bytes, one after the other.
struct GgufText {
  std::string bytes = {};

  template <class T>
  GgufText& number(T value) {
    bytes.append(reinterpret_cast<const char*>(&value), sizeof value);
    return *this;
  }
  GgufText& text(std::string_view text) {
    number(std::uint64_t(text.size()));
    bytes.append(text);
    return *this;
  }
};

/// A file whose every field can be set to what it should not be.
struct GgufBuilder {
  std::string magic = "GGUF";
  std::uint32_t version = 3;
  std::vector<std::string> keys = {};     // with type and value
  std::vector<std::string> tensors = {};  // their entries
  std::string data = {};
  std::uint64_t more_keys = 0, more_tensors = 0;  // than there are
  std::size_t alignment = 32;

  GgufBuilder& key(std::string_view name, std::uint32_t type, const std::string& value) {
    keys.push_back(GgufText().text(name).number(type).bytes + value);
    return *this;
  }
  template <class T>
  GgufBuilder& number(std::string_view name, std::uint32_t type, T value) {
    return key(name, type, GgufText().number(value).bytes);
  }
  GgufBuilder& u32(std::string_view name, std::uint32_t value) { return number(name, 4, value); }
  GgufBuilder& text(std::string_view name, std::string_view value) {
    return key(name, 8, GgufText().text(value).bytes);
  }

  /// An entry alone; sizes innermost first.
  GgufBuilder& entry(std::string_view name, const std::vector<std::uint64_t>& sizes, std::uint32_t type,
                     std::uint64_t offset) {
    GgufText entry;
    entry.text(name).number(std::uint32_t(sizes.size()));
    for (const std::uint64_t size : sizes) entry.number(size);
    tensors.push_back(entry.number(type).number(offset).bytes);
    return *this;
  }

  /// An entry with its bytes, after those before.
  GgufBuilder& tensor(std::string_view name, const std::vector<std::uint64_t>& sizes, std::uint32_t type,
                      const std::string& bytes) {
    data.resize((data.size() + alignment - 1) / alignment * alignment);
    entry(name, sizes, type, data.size());
    data += bytes;
    return *this;
  }

  std::string file() const {
    GgufText file{magic};
    file.number(version).number(tensors.size() + more_tensors).number(keys.size() + more_keys);
    for (const std::string& key : keys) file.bytes += key;
    for (const std::string& tensor : tensors) file.bytes += tensor;
    if (!tensors.empty()) file.bytes.resize((file.bytes.size() + alignment - 1) / alignment * alignment);
    return file.bytes + data;
  }
};

/// A copy in memory of exactly its size: sanitizers see one byte too far.
inline io::MappedFile in_memory(const std::string& text) {
  const std::shared_ptr<std::byte[]> bytes(new std::byte[text.size()]);
  std::memcpy(bytes.get(), text.data(), text.size());
  return {.bytes = {bytes.get(), text.size()}, .owner = bytes};
}

}  // namespace moe::test
