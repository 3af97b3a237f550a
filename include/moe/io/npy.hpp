/// @file  An array of integers that NumPy has saved.
#pragma once

#include <algorithm>
#include <array>
#include <charconv>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <limits>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <type_traits>
#include <vector>

#include "moe/core/types.hpp"
#include "moe/io/error.hpp"
#include "moe/io/mapped_file.hpp"
#include "moe/io/tensor.hpp"

namespace moe::inline MOE_TARGET::io {

/// An array of whole numbers, of any number of dimensions.
struct IntegerArray {
  std::vector<Index> shape = {};           // outermost first
  std::vector<std::int64_t> numbers = {};  // row-major
};

namespace detail {

inline constexpr std::string_view npy_magic = "\x93NUMPY";

/// The dictionary that a .npy file begins with: {'descr': '<i2', 'fortran_order': False, 'shape': (10, 48, 8), }.
class NpyHeader {
 public:
  std::string descr;
  std::optional<bool> fortran_order;
  std::optional<std::vector<Index>> shape;

  /// @throws Error naming the file, if it is no such dictionary, or lacks a key.
  NpyHeader(std::string_view text, const std::string& file) : text_(text), file_(file) {
    expect("{");
    while (!take("}")) {
      const std::string key = quoted();
      expect(":");
      if (key == "descr") {
        descr = quoted();
      } else if (key == "fortran_order") {
        fortran_order = take("True");
        if (!*fortran_order) expect("False");
      } else if (key == "shape") {
        shape = tuple();
      } else {
        fail(file_, ": the header has a key \"", key, "\", expected descr, fortran_order and shape");
      }
      if (take(",")) continue;
      expect("}");
      break;
    }
    skip_blanks();
    if (!text_.empty()) complain("the end of the header");
    if (descr.empty() || !fortran_order || !shape) {
      fail(file_, ": the header is \"", text.substr(0, 200), "\", expected descr, fortran_order and shape");
    }
  }

 private:
  void skip_blanks() { text_.remove_prefix(std::min(text_.find_first_not_of(" \n"), text_.size())); }

  bool take(std::string_view word) {
    skip_blanks();
    if (!text_.starts_with(word)) return false;
    text_.remove_prefix(word.size());
    return true;
  }

  void expect(std::string_view word) {
    if (!take(word)) complain("\"" + std::string(word) + "\"");
  }

  [[noreturn]] void complain(const std::string& expected) const {
    fail(file_, ": the header goes on with \"", text_.substr(0, 40), "\", expected ", expected);
  }

  std::string quoted() {
    const char quote = take("'") ? '\'' : '"';
    if (quote == '"') expect("\"");
    const std::size_t end = text_.find(quote);
    if (end == text_.npos) complain("the end of a word in quotation marks");
    const std::string word(text_.substr(0, end));
    text_.remove_prefix(end + 1);
    return word;
  }

  std::vector<Index> tuple() {
    std::vector<Index> sizes;
    expect("(");
    while (!take(")")) {
      skip_blanks();
      Index size = 0;
      const auto [end, error] = std::from_chars(text_.data(), text_.data() + text_.size(), size);
      if (error != std::errc() || size < 0) complain("a size");
      text_.remove_prefix(std::size_t(end - text_.data()));
      sizes.push_back(size);
      if (take(",")) continue;
      expect(")");
      break;
    }
    return sizes;
  }

  std::string_view text_;
  const std::string& file_;
};

/// The bytes as numbers of type T; what is too large for a signed one becomes −2⁶³.
template <class T>
std::vector<std::int64_t> widened(std::span<const std::byte> bytes) {
  std::vector<std::int64_t> numbers(bytes.size() / sizeof(T));
  for (std::size_t i = 0; i < numbers.size(); ++i) {
    T number;
    std::memcpy(&number, bytes.data() + i * sizeof(T), sizeof(T));
    numbers[i] = static_cast<std::int64_t>(number);
    if (std::is_unsigned_v<T> && numbers[i] < 0) numbers[i] = std::numeric_limits<std::int64_t>::min();
  }
  return numbers;
}

}  // namespace detail

/// A file of numpy.save(): format 1.0, 2.0 or 3.0, whole numbers of 8 to 64 bits, little-endian, in C's order.
/// https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html. (Libraries for it bring zlib with them, and
/// take pickled objects, big-endian numbers and Fortran's order for what they are not.)
/// @throws Error naming the file, what was found and what was expected.
inline IntegerArray read_npy(const std::filesystem::path& path) {
  struct Type {
    std::string_view descr, dtype;
    std::vector<std::int64_t> (*read)(std::span<const std::byte>);
  };
  constexpr auto types = std::to_array<Type>({{"|i1", "I8", &detail::widened<std::int8_t>},
                                              {"|u1", "U8", &detail::widened<std::uint8_t>},
                                              {"<i2", "I16", &detail::widened<std::int16_t>},
                                              {"<u2", "U16", &detail::widened<std::uint16_t>},
                                              {"<i4", "I32", &detail::widened<std::int32_t>},
                                              {"<u4", "U32", &detail::widened<std::uint32_t>},
                                              {"<i8", "I64", &detail::widened<std::int64_t>},
                                              {"<u8", "U64", &detail::widened<std::uint64_t>}});
  const std::string name = utf8(path);
  const MappedFile file = read_file(path);
  const std::string_view all(reinterpret_cast<const char*>(file.bytes.data()), file.bytes.size());
  const std::size_t start = detail::npy_magic.size() + 2;
  if (!all.starts_with(detail::npy_magic) || all.size() < start + 4) {
    fail(name, ": ", all.size(), " bytes, expected a file of numpy.save(), which begin with \\x93NUMPY",
         all.starts_with("PK") ? "; this is an archive, maybe of numpy.savez()" : "");
  }
  const auto byte = [&](std::size_t i) { return std::size_t(static_cast<unsigned char>(all[i])); };
  const std::size_t version = byte(start - 2);
  if (version < 1 || version > 3)
    fail(name, ": the format is ", version, ".", byte(start - 1), ", expected 1.0 to 3.0");
  const std::size_t digits = version == 1 ? 2 : 4;
  std::size_t length = 0;
  for (std::size_t i = 0; i < digits; ++i) length |= byte(start + i) << 8 * i;
  const std::size_t left = all.size() - start - digits;
  if (length > left) fail(name, ": the header has ", length, " bytes, expected at most ", left, ", which are left");
  const detail::NpyHeader header(all.substr(start + digits, length), name);
  const auto* const type = std::ranges::find(types, header.descr, &Type::descr);
  if (type == types.end()) {
    fail(name, ": dtype is '", header.descr, "', expected whole numbers: i1, i2, i4, i8 or u1 … u8, little-endian");
  }
  if (*header.fortran_order && header.shape->size() > 1) {
    fail(name, ": fortran_order is True, expected False: save numpy.ascontiguousarray() of it");
  }
  const Tensor tensor{.name = "array",
                      .dtype = std::string(type->dtype),
                      .shape = *header.shape,
                      .bytes = file.bytes.subspan(start + digits + length),
                      .file = name};
  check_size(tensor);
  return {*header.shape, type->read(tensor.bytes)};
}

}  // namespace moe::inline MOE_TARGET::io
