/// @file  A folder of files that a fuzzer, or a test, has written down as one text.
///
///   @@ config.json text
///   {"model_type": "mixtral", …}
///   @@ model.safetensors tensors
///   model.layers.0.mlp.gate.weight F32 8,40 cdcc4c3d
///   …
///
/// A file of `tensors` is described: name, dtype, shape, and the bytes that its numbers repeat, in hexadecimal. One of
/// `header` is a safetensors header in JSON, a byte 0, and all that follows it in the file; its length is put in front.
/// What is of any other kind is written as it stands. So what a fuzzer changes is read again, not cut off at the first
/// length that no longer fits.
#pragma once

#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <sstream>
#include <string>
#include <string_view>
#include <system_error>
#include <vector>

#include <nlohmann/json.hpp>

#include "moe/io/error.hpp"
#include "moe/io/tensor.hpp"

namespace moe::fuzz {

namespace detail {

inline constexpr std::string_view mark = "@@ ";
inline constexpr std::size_t most_bytes = 4 << 20;  // of described tensors: what is larger is no other case

inline std::string with_length(const std::string& header, const std::string& data) {
  const std::uint64_t length = header.size();
  std::string file(sizeof length, '\0');
  std::memcpy(file.data(), &length, sizeof length);
  return file + header + data;
}

inline std::string header_file(const std::string& text) {
  const std::size_t end = std::min(text.find('\0'), text.size());
  return with_length(text.substr(0, end), end < text.size() ? text.substr(end + 1) : "");
}

/// As many bytes as a described tensor has, or more than most_bytes.
inline std::size_t bytes_of(const std::vector<Index>& shape, const std::string& dtype) {
  std::size_t bytes = std::size_t(std::max(io::dtype_bits(dtype), 8)) / 8;
  for (const Index size : shape) {
    if (size < 0 || std::size_t(size) > most_bytes) return most_bytes + 1;
    bytes *= std::size_t(size);
    if (bytes > most_bytes) return bytes;
  }
  return io::dtype_bits(dtype) == 4 ? (bytes + 1) / 2 : bytes;
}

/// A number as it begins; 0 if it does not.
inline Index to_index(const std::string& text) { return Index(std::strtoll(text.c_str(), nullptr, 10)); }

inline std::string described_file(const std::string& text) {
  std::string header = "{", data;
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    std::istringstream words(line);
    std::string name, dtype, sizes, hex;
    words >> name >> dtype >> sizes >> hex;
    if (dtype.empty()) continue;
    std::vector<Index> shape;
    std::istringstream each(sizes);
    for (std::string size; std::getline(each, size, ',');) shape.push_back(to_index(size));
    const std::size_t bytes = bytes_of(shape, dtype), first = data.size();
    if (first + bytes > most_bytes) continue;
    std::string pattern;
    for (std::size_t i = 0; i + 1 < hex.size(); i += 2) {
      pattern += static_cast<char>(std::strtoul(hex.substr(i, 2).c_str(), nullptr, 16));
    }
    data.resize(first + bytes);
    for (std::size_t done = 0; done < bytes && !pattern.empty();) {  // by halves: bytes one by one are slow here
      const std::size_t n = std::min(done == 0 ? pattern.size() : done, bytes - done);
      std::memcpy(&data[first + done], done == 0 ? pattern.data() : &data[first], n);
      done += n;
    }
    const nlohmann::json entry = {{"dtype", dtype}, {"shape", shape}, {"data_offsets", {first, data.size()}}};
    const auto dump = [](const nlohmann::json& json) {
      return json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
    };
    header += (header.size() > 1 ? "," : "") + dump(name) + ":" + dump(entry);  // a name may be there twice
  }
  header += "}" + std::string((8 - (header.size() + 1) % 8) % 8, ' ');  // numbers lie aligned, as writers have them
  return with_length(header, data);
}

/// Names of files that stay in their folder.
inline bool is_plain(const std::string& name) {
  const auto fine = [](char c) {
    return std::isalnum(static_cast<unsigned char>(c)) || c == '.' || c == '_' || c == '-';
  };
  return !name.empty() && name.size() <= 64 && name[0] != '.' && std::ranges::all_of(name, fine);
}

}  // namespace detail

/// In memory where the system has such a place; removed with what is in it.
class Folder {
 public:
  explicit Folder(std::string_view text) {
    std::error_code ignored;
    const std::filesystem::path memory = "/dev/shm";
    path_ = (std::filesystem::is_directory(memory, ignored) ? memory : std::filesystem::temp_directory_path()) /
            ("moe_fuzz_" + std::to_string(::getpid()));
    std::filesystem::remove_all(path_);
    std::filesystem::create_directories(path_);
    while (!text.empty()) {
      const std::size_t end = text.find("\n@@ ");
      write(text.substr(0, end));
      text.remove_prefix(end == std::string_view::npos ? text.size() : end + 1);
    }
  }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;
  ~Folder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }

  const std::filesystem::path& path() const { return path_; }

 private:
  void write(std::string_view section) const {
    if (!section.starts_with(detail::mark)) return;
    const std::size_t end = std::min(section.find('\n'), section.size());
    std::istringstream words(std::string(section.substr(detail::mark.size(), end - detail::mark.size())));
    std::string name, kind;
    words >> name >> kind;
    if (!detail::is_plain(name)) return;
    const std::string text(section.substr(std::min(end + 1, section.size())));
    std::ofstream(path_ / name, std::ios::binary) << (kind == "tensors"  ? detail::described_file(text)
                                                      : kind == "header" ? detail::header_file(text)
                                                                         : text);
  }

  std::filesystem::path path_;
};

/// Runs f, which may complain of the folder's files by io::Error and by nothing else, and names one.
template <class F>
void may_complain(const Folder& folder, const F& f) {
  try {
    f();
  } catch (const io::Error& error) {
    if (std::string_view(error.what()).find(folder.path().filename().string()) != std::string_view::npos) return;
    std::cerr << "names no file: " << error.what() << "\n";
    std::abort();
  }
}

inline std::string_view text_of(const std::uint8_t* data, std::size_t size) {
  return {reinterpret_cast<const char*>(data), size};
}

}  // namespace moe::fuzz
