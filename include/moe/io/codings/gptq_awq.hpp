/// @file  Integers that are packed along columns, as GPTQ and AWQ write them.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <type_traits>
#include <vector>

#include "moe/core/quantized.hpp"
#include "moe/core/types.hpp"
#include "moe/formats/integers.hpp"
#include "moe/formats/repack.hpp"
#include "moe/io/codings/coded_module.hpp"
#include "moe/io/codings/integers.hpp"
#include "moe/io/error.hpp"
#include "moe/io/quantization.hpp"
#include "moe/io/tensor.hpp"

namespace moe::inline MOE_TARGET::io::detail {

inline constexpr Family of_gptq{"packed as GPTQ does", {{{"gptq"}}}};
inline constexpr Family of_awq{"packed as AWQ does", {{{"awq"}}}};

/// What a group of all columns is called: as it is said, if that is one.
inline Index whole_row(const Coding& promised, Index cols) {
  return !promised.cols ? 0 : *promised.cols == 0 || *promised.cols >= cols ? *promised.cols : cols;
}

/// A matrix of words, or of scales, with its rows as columns.
inline const std::byte* turned(CodedModule& module, const Tensor& tensor) {
  const auto turn_as = [&, rows = tensor.shape[0], cols = tensor.shape[1]](auto size) {
    const auto make = [=](const std::byte* from, std::byte* to) { turn<size>(from, rows, cols, to); };
    return module.made({tensor.bytes, tensor.bytes.size(), make});
  };
  if (dtype_bits(tensor.dtype) == 16) return turn_as(std::integral_constant<std::size_t, 2>());
  return turn_as(std::integral_constant<std::size_t, 4>());
}

inline QuantizedWeight read_gptq(CodedModule& module, const Tensor& codes, const Tensor& zeros, const Tensor& scales) {
  const Index words = codes.shape[0], rows = codes.shape[1], groups = scales.shape[0];
  const Coding promised = module.said.of(module.name);
  const Tensor* const index = module.tensors.find(module.name + ".g_idx");
  int bits = bits_in(promised.type);
  if (index != nullptr && index->shape.size() == 1 && bits == 0) bits = bits_of_words(codes, words, index->shape[0]);
  if (bits == 0)
    fail(to_string(codes), ": how many bits its numbers have is said by nothing: expected a g_idx beside it");
  const Index cols = words * 32 / bits;
  Coding coding{.type = int_type(bits), .rows = 1, .cols = (cols + groups - 1) / groups};
  if (promised.cols.value_or(0) > 0 && (cols + *promised.cols - 1) / *promised.cols == groups)
    coding.cols = promised.cols;
  if (groups == 1) coding.cols = whole_row(promised, cols);
  if (words * 32 % bits != 0 || (index != nullptr && index->shape != std::vector<Index>{cols})) {
    fail(to_string(codes), " has shape ", to_string(codes.shape), ", which is ", cols, " numbers of ", bits,
         " bits in a column, expected ",
         index == nullptr ? "a whole number" : std::to_string(element_count(*index)) + ", as its g_idx has");
  }
  if (rows * bits % 32 != 0)
    fail(to_string(codes), " has shape ", to_string(codes.shape), ", expected a multiple of 32 columns");
  require_shape(zeros, {groups, rows * bits / 32});
  module.require_promised(codes, coding, promised);
  const Index size = dtype_bits(scales.dtype) / 8, group = groups == 1 ? std::max<Index>(cols, 1) : *coding.cols;
  const BytePlane codes_plane{turned(module, codes), words * 4};
  const BytePlane its_scales{turned(module, scales), groups * size, 1, group};
  const auto make_zeros = [=, one_less = promised.layout != "v2"](const std::byte* from, std::byte* to) {
    zeros_of_gptq(from, groups, rows, bits, one_less, to);
  };
  const BytePlane its_zeros{module.made({zeros.bytes, std::size_t(rows * groups), make_zeros}), groups, 1, group};
  coding.zeros = true;
  const std::int32_t* by_index =
      index == nullptr ? nullptr : indices(module, module.take(module.name + ".g_idx"), cols, groups);
  if (by_index == nullptr) require_whole_bytes(scales, group, cols);
  for (Index i = 0; group % 8 == 0 && by_index != nullptr && i <= cols; ++i) {
    if (i == cols)
      by_index = nullptr;  // groups are runs
    else if (by_index[i] != i / group)
      break;
  }
  return with_scales(scales, [&]<class T>(T) {
    return with_bits(bits, [&](auto b) {
      QuantizedWeight weight = made(by_index == nullptr ? packed_integers<b, T, T> : indexed_integers<b, T, T>, rows,
                                    cols, codes_plane, its_scales, its_zeros, 1, dtype_of<T>(), coding);
      weight.matrix.group_of = by_index;
      return weight;
    });
  });
}

inline QuantizedWeight read_awq(CodedModule& module, const Tensor& codes, const Tensor& zeros, const Tensor& scales) {
  const Index cols = codes.shape[0], rows = scales.shape[1], groups = scales.shape[0];
  require_shape(zeros, {groups, rows / 8});
  const Coding promised = module.said.of(module.name);
  if (cols % groups != 0 || cols % 2 != 0) {
    fail(to_string(scales), " has shape ", to_string(scales.shape), ", expected ", groups, " groups to divide rows of ",
         cols, " numbers");
  }
  const Index group = cols / groups, size = dtype_bits(scales.dtype) / 8;
  require_whole_bytes(scales, group, cols);
  Coding coding{.type = "INT4", .rows = 1, .cols = groups == 1 ? whole_row(promised, cols) : group};
  module.require_promised(codes, coding, promised);
  const auto make_rows = [=](const std::byte* from, std::byte* to) { rows_of_awq(from, rows, cols, to); };
  const auto make_zeros = [=](const std::byte* from, std::byte* to) { zeros_of_awq(from, groups, rows, to); };
  const BytePlane codes_plane{module.made({codes.bytes, std::size_t(rows * cols / 2), make_rows}), cols / 2};
  const BytePlane its_scales{turned(module, scales), groups * size, 1, group};
  const BytePlane its_zeros{module.made({zeros.bytes, std::size_t(rows * groups), make_zeros}), groups, 1, group};
  coding.zeros = true;
  return with_scales(scales, [&]<class T>(T) {
    return made(packed_integers<4, T, T>, rows, cols, codes_plane, its_scales, its_zeros, 1, dtype_of<T>(), coding);
  });
}

inline QuantizedWeight read_gptq_or_awq(CodedModule& module) {
  const Tensor codes = module.take(module.name + ".qweight"), zeros = module.take(module.name + ".qzeros"),
               scales = module.take(module.name + ".scales");
  require_dtype(codes, {"I32"});
  require_dtype(zeros, {"I32"});
  require_dtype(scales, {"F16", "BF16", "F32"});
  const auto [down, across] = matrix_shape(codes);
  const auto [groups, rows] = matrix_shape(scales);
  const bool is_awq = across != rows;
  if (is_awq && 8 * across != rows) {
    fail(to_string(codes), " has shape ", to_string(codes.shape), ", expected […, ", rows, "] of GPTQ or [in, ",
         rows / 8, "] of AWQ, for scales of ", to_string(scales.shape));
  }
  module.require_family(codes, is_awq ? of_awq : of_gptq);
  return is_awq ? read_awq(module, codes, zeros, scales) : read_gptq(module, codes, zeros, scales);
}

}  // namespace moe::inline MOE_TARGET::io::detail
