/// @file  A tensor as files know it: named, with an element type that is known at run time.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <ranges>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "moe/core/quantized.hpp"
#include "moe/core/types.hpp"
#include "moe/io/error.hpp"

namespace moe::inline MOE_TARGET::io {

static_assert(std::endian::native == std::endian::little, "tensors in files are little-endian and used in place");

/// Copy it freely: copies share the bytes.
struct Tensor {
  std::string name = {};
  std::string dtype = {};                  // as the file spells it: "F32", "BF16", …; of coded numbers, their format's
  std::vector<Index> shape = {};           // outermost first; empty for a scalar
  std::span<const std::byte> bytes = {};   // row-major, little-endian
  std::shared_ptr<const void> owner = {};  // keeps the bytes where they are; empty if somebody else does
  std::string file = {};                   // it was read from, for messages
  /// Of coded numbers: the matrix, or one for each of the outermost dimension; `bytes` are then the codes alone.
  std::shared_ptr<const std::vector<QuantizedMatrix>> coded = {};
};

/// What safetensors calls a C++ type; empty for one that it has no name for.
template <class T>
inline constexpr std::string_view dtype_name = "";
template <>
inline constexpr std::string_view dtype_name<double> = "F64";
template <>
inline constexpr std::string_view dtype_name<float> = "F32";
template <>
inline constexpr std::string_view dtype_name<float16> = "F16";
template <>
inline constexpr std::string_view dtype_name<bfloat16> = "BF16";
template <>
inline constexpr std::string_view dtype_name<std::int64_t> = "I64";
template <>
inline constexpr std::string_view dtype_name<std::uint8_t> = "U8";

/// Tensors of these can be read as C++ values.
template <class T>
concept Element = !dtype_name<T>.empty();

/// Bits of an element; 0 for a dtype that we have not heard of. The list is that of enum Dtype in the reference
/// implementation, https://github.com/huggingface/safetensors, src/tensor.rs.
constexpr int dtype_bits(std::string_view dtype) {
  using Entry = std::pair<std::string_view, int>;
  constexpr auto known = std::to_array<Entry>(
      {{"F64", 64},        {"F32", 32},    {"F16", 16},    {"BF16", 16},   {"I64", 64},    {"U64", 64},
       {"I32", 32},        {"U32", 32},    {"I16", 16},    {"U16", 16},    {"I8", 8},      {"U8", 8},
       {"BOOL", 8},        {"C64", 64},    {"F8_E4M3", 8}, {"F8_E5M2", 8}, {"F8_E8M0", 8}, {"F8_E4M3FNUZ", 8},
       {"F8_E5M2FNUZ", 8}, {"F6_E2M3", 6}, {"F6_E3M2", 6}, {"F4", 4}});
  const auto* const found = std::ranges::find(known, dtype, &Entry::first);
  return found == known.end() ? 0 : found->second;
}

/// How messages write a shape: [8, 32].
inline std::string to_string(const std::vector<Index>& shape) {
  std::string text = "[";
  for (const Index size : shape) text += (text.size() > 1 ? ", " : "") + std::to_string(size);
  return text + "]";
}

/// How messages name a tensor: model.safetensors: tensor "gate.weight".
inline std::string to_string(const Tensor& tensor) {
  return (tensor.file.empty() ? "" : tensor.file + ": ") + "tensor \"" + tensor.name + "\"";
}

/// The product of the shape.
/// @throws Error if a size is negative or the product, zeros left out, is more than memory could hold.
inline Index element_count(const Tensor& tensor) {
  constexpr Index limit = std::numeric_limits<Index>::max() / 64;  // so that the number of bits fits too
  Index product = 1;
  for (const Index size : tensor.shape) {
    if (size < 0) fail(to_string(tensor), " has shape ", to_string(tensor.shape), ", expected no negative size");
    if (size > 0 && product > limit / size) {
      fail(to_string(tensor), " has shape ", to_string(tensor.shape), ", expected at most ", limit, " elements");
    }
    product *= std::max<Index>(size, 1);
  }
  return std::ranges::count(tensor.shape, 0) > 0 ? 0 : product;
}

/// @throws Error unless the bytes are as many as shape and dtype say. Takes the bytes' word for an unknown dtype.
inline void check_size(const Tensor& tensor) {
  const Index count = element_count(tensor);
  const int bits = dtype_bits(tensor.dtype);
  if (bits == 0) return;
  const std::string what = to_string(tensor.shape) + " of " + tensor.dtype;
  if (count * bits % 8 != 0) fail(to_string(tensor), " has shape ", what, ", expected a whole number of bytes");
  const auto expected = static_cast<std::size_t>(count * bits / 8), got = tensor.bytes.size();
  if (got != expected) fail(to_string(tensor), " has ", got, " bytes, expected ", expected, " for shape ", what);
}

/// True if the bytes lie where the processor wants elements of this dtype.
inline bool is_aligned(const Tensor& tensor) {
  const auto bytes = static_cast<std::uintptr_t>(std::max(1, dtype_bits(tensor.dtype) / 8));
  return reinterpret_cast<std::uintptr_t>(tensor.bytes.data()) % bytes == 0;
}

/// The same tensor where as() can read it: itself, or else a copy in memory of its own.
inline Tensor aligned(Tensor tensor) {
  if (is_aligned(tensor)) return tensor;
  const std::shared_ptr<std::byte[]> copy(new std::byte[tensor.bytes.size()]);  // new aligns for every scalar
  std::ranges::copy(tensor.bytes, copy.get());
  tensor.bytes = {copy.get(), tensor.bytes.size()};
  tensor.owner = copy;
  return tensor;
}

/// The elements, row-major, where they lie: valid for as long as the tensor's owner lives.
/// @throws Error unless the tensor's dtype is T's, its bytes are as many as its shape says, and it is aligned().
template <Element T>
std::span<const T> as(const Tensor& tensor) {
  if (tensor.dtype != dtype_name<T>) {
    fail(to_string(tensor), " has dtype ", tensor.dtype, ", expected ", dtype_name<T>);
  }
  check_size(tensor);
  if (!is_aligned(tensor)) fail(to_string(tensor), " is not aligned for ", tensor.dtype, ": read its aligned() copy");
  return {reinterpret_cast<const T*>(tensor.bytes.data()), tensor.bytes.size() / sizeof(T)};
}

/// @throws Error naming both shapes, if the tensor's is another.
inline void require_shape(const Tensor& tensor, const std::vector<Index>& shape) {
  if (tensor.shape == shape) return;
  fail(to_string(tensor), " has shape ", to_string(tensor.shape), ", expected ", to_string(shape));
}

/// The elements of a tensor of this shape.
/// @throws Error if the shape is another, or as above.
template <Element T>
std::span<const T> as(const Tensor& tensor, const std::vector<Index>& shape) {
  require_shape(tensor, shape);
  return as<T>(tensor);
}

/// Give the tensor a name first: a temporary one may take its bytes with it.
template <Element T>
std::span<const T> as(const Tensor&& tensor) = delete;
template <Element T>
std::span<const T> as(const Tensor&& tensor, const std::vector<Index>& shape) = delete;

/// The numbers that codes stand for, row-major.
inline std::vector<float> decoded(const Tensor& tensor) {
  std::vector<float> numbers(static_cast<std::size_t>(element_count(tensor)));
  float* to = numbers.data();
  for (const QuantizedMatrix& matrix : *tensor.coded) {
    for (Index r = 0; r < matrix.rows(); ++r, to += matrix.cols()) matrix.decode(r, 0, matrix.cols(), to);
  }
  return numbers;
}

/// f(its elements), whatever floating-point type they are of: where they lie; or decoded, as floats.
/// @throws Error naming the tensor and its dtype, if that is none of them: an integer, or a number of 8 bits or fewer,
///         which means nothing without its scale; or as as().
template <class F>
auto with_floats(const Tensor& tensor, const F& f) {
  if (tensor.coded) {
    const std::vector<float> numbers = decoded(tensor);
    return f(std::span<const float>(numbers));
  }
  if (tensor.dtype == dtype_name<float>) return f(as<float>(tensor));
  if (tensor.dtype == dtype_name<bfloat16>) return f(as<bfloat16>(tensor));
  if (tensor.dtype == dtype_name<float16>) return f(as<float16>(tensor));
  if (tensor.dtype == dtype_name<double>) return f(as<double>(tensor));
  fail(to_string(tensor), " has dtype ", tensor.dtype, ", expected F32, BF16, F16 or F64");
}

/// Its numbers as Scalar, whatever floating-point type they are stored in. A tensor (out × in) is (out × in), a vector
/// (n) is (n × 1), and one of more dimensions is (its outermost × all others).
/// @throws Error as with_floats().
template <std::floating_point Scalar = float>
Weight<Scalar> read(const Tensor& tensor) {
  return with_floats(tensor, [&]<class T>(std::span<const T> from) -> Weight<Scalar> {
    Index rows = 1, cols = 1;
    for (std::size_t i = 0; i < tensor.shape.size(); ++i) (i == 0 ? rows : cols) *= tensor.shape[i];
    return Eigen::Map<const Weight<T>>(from.data(), rows, cols).template cast<Scalar>();
  });
}

/// Values that lie one after the other and outlive the expression that names them: no temporary container.
template <class R>
concept BorrowedElements =
    std::ranges::contiguous_range<R> && std::ranges::borrowed_range<R> && Element<std::ranges::range_value_t<R>>;

/// A tensor of values that the caller keeps alive.
template <BorrowedElements Values>
Tensor make_tensor(std::string name, std::vector<Index> shape, Values&& values) {
  return {.name = std::move(name),
          .dtype = std::string(dtype_name<std::ranges::range_value_t<Values>>),
          .shape = std::move(shape),
          .bytes = std::as_bytes(std::span(values))};
}

}  // namespace moe::inline MOE_TARGET::io
