/// @file  Integers of rows, as compressed-tensors and torchao write them.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "moe/core/quantized.hpp"
#include "moe/core/types.hpp"
#include "moe/formats/fp8.hpp"
#include "moe/formats/integers.hpp"
#include "moe/formats/repack.hpp"
#include "moe/io/codings/coded_module.hpp"
#include "moe/io/error.hpp"
#include "moe/io/quantization.hpp"
#include "moe/io/tensor.hpp"
#include "moe/kernels/lanes.hpp"

namespace moe::inline MOE_TARGET::io::detail {

inline constexpr Family packed_of_compressed_tensors{"packed integers of compressed-tensors",
                                                     {{{"compressed-tensors", "pack-quantized"}}}};
inline constexpr Family bytes_of_compressed_tensors{
    "integers in bytes, as compressed-tensors has them",
    {{{"compressed-tensors", "int-quantized"}, {"compressed-tensors", "naive-quantized"}}}};
inline constexpr Family of_torchao{"numbers of torchao", {{{"torchao"}}}};

/// f(constant) of bits from 2 to 8.
template <class F>
QuantizedWeight with_bits(int bits, const F& f) {
  switch (bits) {
    case 2:
      return f(std::integral_constant<int, 2>());
    case 3:
      return f(std::integral_constant<int, 3>());
    case 4:
      return f(std::integral_constant<int, 4>());
    case 5:
      return f(std::integral_constant<int, 5>());
    case 6:
      return f(std::integral_constant<int, 6>());
    case 7:
      return f(std::integral_constant<int, 7>());
    default:
      return f(std::integral_constant<int, 8>());
  }
}

inline int bits_in(const std::string& type) { return type.starts_with("INT") ? std::atoi(type.c_str() + 3) : 0; }

inline std::string int_type(int bits) { return "INT" + std::to_string(bits); }

/// How many bits codes of rows of 32-bit words have.
inline int bits_of_words(const Tensor& codes, Index words, Index cols) {
  int found = 0;
  for (int bits = 2; bits <= 8; ++bits) {
    if ((cols * bits + 31) / 32 != words) continue;
    if (found != 0) {
      fail(to_string(codes), " has rows of ", words, " words for ", cols, " numbers, which may be of ", found, " or ",
           bits, " bits each: expected a config that says it");
    }
    found = bits;
  }
  if (found != 0) return found;
  fail(to_string(codes), " has rows of ", words, " words for ", cols,
       " numbers, expected 2 to 8 bits for each: ", (cols * 2 + 31) / 32, " to ", (cols * 8 + 31) / 32, " words");
}

/// The group's size alone counts, not what a whole matrix would be.
inline Coding group_of(const Coding& promised) { return {.rows = promised.rows, .cols = promised.cols}; }

inline BytePlane packed_zeros(CodedModule& module, Index rows, Index groups, int bits, const BytePlane& scales,
                              Coding& coding) {
  const std::string name = module.weight + "_zero_point";
  coding.zeros = module.has(name);
  if (!module.has(name)) return {};
  const Tensor zeros = module.take(name);
  const Index num = scales.row_bytes == 0 ? 1 : rows;
  BytePlane plane{nullptr, groups, scales.rows_together, scales.cols_together};
  if (plane.row_bytes == 1 && plane.rows_together > 1) plane.row_bytes = 0;
  if (zeros.dtype == "I8") {  // not packed
    if (element_count(zeros) != num * groups) require_shape(zeros, {num, groups});
    const int middle = 1 << (bits - 1);
    for (std::size_t i = 0; i < zeros.bytes.size(); ++i) {
      const int zero = std::int8_t(zeros.bytes[i]);
      if (zero < -middle || zero >= middle) {
        fail(to_string(zeros), " holds ", zero, " at ", i, ", expected ", -middle, " to ", middle - 1, " of ", bits,
             " bits");
      }
    }
    plane.data = module.made({zeros.bytes, zeros.bytes.size(), [=](const std::byte* from, std::byte* to) {
                                for (Index i = 0; i < num * groups; ++i) to[i] = std::byte(int(from[i]) + middle);
                              }});
    return plane;
  }
  require_dtype(zeros, {"I32", "I8"});
  require_shape(zeros, {(num * bits + 31) / 32, groups});
  plane.data = module.made({zeros.bytes, std::size_t(num * groups),
                            [=](const std::byte* from, std::byte* to) { zeros_down(from, num, groups, bits, to); }});
  return plane;
}

/// Each within [0, groups).
inline const std::int32_t* indices(CodedModule& module, const Tensor& tensor, Index cols, Index groups) {
  require_dtype(tensor, {"I32"});
  require_shape(tensor, {cols});
  const Tensor index = aligned(tensor);
  module.keep(index.owner);
  const auto* const numbers = reinterpret_cast<const std::int32_t*>(index.bytes.data());
  for (Index i = 0; i < cols; ++i) {
    if (numbers[i] >= 0 && numbers[i] < groups) continue;
    fail(to_string(tensor), " holds ", numbers[i], " at ", i, ", expected a group from 0 to ", groups - 1);
  }
  return numbers;
}

inline QuantizedWeight read_packed_int_by_index(CodedModule& module, const Tensor& codes, const BytePlane& codes_plane,
                                                const Tensor& scales, Index rows, Index cols, int bits, Coding coding) {
  const Index groups = scales.shape.size() == 2 && scales.shape[0] == rows ? scales.shape[1] : 0;
  if (groups == 0) require_shape(scales, {rows, groups});
  const Coding promised = module.said.of(module.name);
  coding.rows = 1;
  coding.cols = promised.cols ? promised.cols : (cols + groups - 1) / groups;
  const Index size = dtype_bits(scales.dtype) / 8;
  const BytePlane its_scales{scales.bytes.data(), groups * size, 1, 1};
  const BytePlane zeros = packed_zeros(module, rows, groups, bits, its_scales, coding);
  module.require_promised(codes, coding, promised);
  const std::int32_t* const index = indices(module, module.take(module.weight + "_g_idx"), cols, groups);
  return with_scales(scales, [&]<class T>(T) {
    return with_bits(bits, [&](auto b) {
      QuantizedWeight weight =
          made(indexed_integers<b, T, T>, rows, cols, codes_plane, its_scales, zeros, 1, dtype_of<T>(), coding);
      weight.matrix.group_of = index;
      return weight;
    });
  });
}

inline QuantizedWeight read_packed_int(CodedModule& module, const Tensor& codes) {
  module.require_family(codes, packed_of_compressed_tensors);
  const auto packed_shape = matrix_shape(codes);
  const Index rows = packed_shape.first, words = packed_shape.second;
  const Tensor shape = module.take(module.weight + "_shape"), scales = module.take(module.weight + "_scale");
  require_dtype(shape, {"I64", "I32"});
  if (element_count(shape) != 2) fail(to_string(shape), " has shape ", to_string(shape.shape), ", expected [2]");
  const auto size = [&](Index i) {
    return shape.dtype == "I64" ? Index(kernels::load_as<std::int64_t>(shape.bytes.data() + 8 * i))
                                : Index(kernels::load_as<std::int32_t>(shape.bytes.data() + 4 * i));
  };
  const Index cols = size(1);
  if (size(0) != rows || cols < 1 || cols > 16 * words) {
    fail(to_string(shape), " says ", size(0), " × ", cols, ", and ", to_string(codes), " has shape ",
         to_string(codes.shape), ", expected ", rows, " rows of ", 4 * words, " to ", 16 * words, " numbers");
  }
  const Coding promised = module.said.of(module.name);
  const int said_bits = bits_in(promised.type);  // a short row may be of several
  const int bits = said_bits >= 2 && said_bits <= 8 && (cols * said_bits + 31) / 32 == words
                       ? said_bits
                       : bits_of_words(codes, words, cols);
  Coding coding{.type = int_type(bits)};
  module.require_promised(codes, coding, promised);
  const BytePlane codes_plane{codes.bytes.data(), 4 * words};
  const std::string index = module.weight + "_g_idx";
  if (module.has(index)) return read_packed_int_by_index(module, codes, codes_plane, scales, rows, cols, bits, coding);
  const BytePlane its_scales = module.plane_of(scales, rows, cols, coding, group_of(promised));
  const Index groups = its_scales.row_bytes == 0 ? 1 : (cols + its_scales.cols_together - 1) / its_scales.cols_together;
  const BytePlane zeros = packed_zeros(module, rows, groups, bits, its_scales, coding);
  module.require_promised(codes, coding, promised);
  return with_scales(scales, [&]<class T>(T) {
    return with_bits(bits, [&](auto b) {
      return made(packed_integers<b, T, T>, rows, cols, codes_plane, its_scales, zeros, 1, dtype_of<T>(), coding);
    });
  });
}

inline QuantizedWeight signed_bytes(const Tensor& weight, const Tensor& scales, const BytePlane& its_scales,
                                    const BytePlane& zeros, const Coding& coding) {
  return with_scales(scales, [&]<class T>(T) {
    return made(moe::int8<T, T>, weight.shape[0], weight.shape[1], {weight.bytes.data(), weight.shape[1]}, its_scales,
                zeros, 1, dtype_of<T>(), coding);
  });
}

/// As many as there are scales; none, if all are 0.
inline BytePlane signed_zeros(CodedModule& module, const std::string& name, const Tensor& scales, const BytePlane& like,
                              int bits) {
  if (!module.has(name)) return {};
  const Tensor zeros = module.take(name);
  require_dtype(zeros, {"I8"});
  if (element_count(zeros) != element_count(scales)) require_shape(zeros, scales.shape);
  const int middle = 1 << (bits - 1);
  for (std::size_t i = 0; i < zeros.bytes.size(); ++i) {
    const int zero = std::int8_t(zeros.bytes[i]);
    if (zero >= -middle && zero < middle) continue;
    fail(to_string(zeros), " holds ", zero, " at ", i, ", expected ", -middle, " to ", middle - 1, " of ", bits,
         " bits");
  }
  if (std::ranges::count(zeros.bytes, std::byte(0)) == std::ssize(zeros.bytes)) return {};  // written all the same
  BytePlane plane = like;
  plane.data = zeros.bytes.data();
  plane.row_bytes = like.row_bytes / (dtype_bits(scales.dtype) / 8);
  return plane;
}

/// compressed-tensors' int-quantized.
inline QuantizedWeight read_int8(CodedModule& module) {
  const Tensor weight = module.take(module.weight), scales = module.take(module.weight + "_scale");
  module.require_family(weight, bytes_of_compressed_tensors);
  const auto [rows, cols] = matrix_shape(weight);
  const Coding promised = module.said.of(module.name);
  Coding coding{.type = bits_in(promised.type) > 0 ? promised.type : "INT8"};  // fewer bits are bytes as well
  module.require_promised(weight, coding, promised);
  const BytePlane its_scales = module.plane_of(scales, rows, cols, coding, group_of(promised));
  const BytePlane zeros = signed_zeros(module, module.weight + "_zero_point", scales, its_scales, bits_in(coding.type));
  if (zeros.data != nullptr || !module.has(module.weight + "_zero_point"))
    coding.zeros = zeros.data != nullptr;  // else either
  module.require_promised(weight, coding, promised);
  return signed_bytes(weight, scales, its_scales, zeros, coding);
}

/// torchao's int8, or its float8 beside that, as transformers stores them.
inline QuantizedWeight read_torchao(CodedModule& module) {
  const Tensor weight = module.take(module.name + "._weight_qdata"),
               scales = module.take(module.name + "._weight_scale");
  module.require_family(weight, of_torchao);
  const auto [rows, cols] = matrix_shape(weight);
  Coding coding{.type = weight.dtype == "I8" ? "INT8" : "FP8"};
  const BytePlane its_scales = module.plane_of(scales, rows, cols, coding, {});
  require_dtype(weight, {"I8", "F8_E4M3"});
  module.require_promised(weight, coding, module.said.of(module.name));
  if (weight.dtype == "I8") {
    const BytePlane zeros = signed_zeros(module, module.name + "._weight_zero_point", scales, its_scales, 8);
    coding.zeros = zeros.data != nullptr;
    return signed_bytes(weight, scales, its_scales, zeros, coding);
  }
  return with_scales(scales, [&, r = rows, c = cols]<class T>(T) {
    return made(moe::fp8<T, T>, r, c, {weight.bytes.data(), c}, its_scales, {}, 1, dtype_of<T>(), coding);
  });
}

}  // namespace moe::inline MOE_TARGET::io::detail
