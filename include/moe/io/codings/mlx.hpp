/// @file  What MLX writes: integers with biases, MXFP4, MXFP8 or NVFP4.
#pragma once

#include <algorithm>
#include <string>

#include "moe/core/quantized.hpp"
#include "moe/core/types.hpp"
#include "moe/formats/affine.hpp"
#include "moe/formats/mx.hpp"
#include "moe/formats/nvfp4.hpp"
#include "moe/io/codings/coded_module.hpp"
#include "moe/io/codings/integers.hpp"
#include "moe/io/error.hpp"
#include "moe/io/quantization.hpp"
#include "moe/io/tensor.hpp"

namespace moe::inline MOE_TARGET::io::detail {

inline constexpr Family of_mlx{"numbers of MLX", {{{"mlx"}}}};

inline QuantizedWeight read_microscaled_mlx(CodedModule& module, const Tensor& weight, const Tensor& scales,
                                            const Coding& promised) {
  require_dtype(scales, {"U8"});
  const Index rows = weight.shape[0], words = weight.shape[1], groups = scales.shape[1], bits = words * 32 / groups;
  const bool fp8 = bits == 256, fp4 = bits == 128;
  if (words * 32 % groups != 0 || (!fp8 && !fp4 && bits != 64)) {
    fail(to_string(scales), " has shape ", to_string(scales.shape), ", expected [", rows, ", ", words / 4,
         "] of MXFP4, [", rows, ", ", words / 2, "] of NVFP4 or [", rows, ", ", words / 8, "] of MXFP8");
  }
  const Index group = fp8 || fp4 ? 32 : 16;
  const Coding coding{.type = fp8 ? "MXFP8" : fp4 ? "MXFP4" : "NVFP4", .rows = 1, .cols = group};
  module.require_promised(weight, coding, promised);
  if (fp8) require_finite_exponents(scales);
  if (!fp8 && !fp4) require_finite<moe::detail::E4m3>(scales);
  return made(fp8   ? mxfp8
              : fp4 ? mxfp4
                    : moe::nvfp4<GlobalScale::none, bfloat16>,
              rows, group * groups, {weight.bytes.data(), 4 * words}, {scales.bytes.data(), groups, 1, group}, {}, 1,
              "BF16", coding);
}

inline QuantizedWeight read_mlx(CodedModule& module) {
  const Tensor weight = module.take(module.weight), scales = module.take(module.name + ".scales");
  module.require_family(weight, of_mlx);
  require_dtype(weight, {"U32"});
  const auto [rows, words] = matrix_shape(weight);
  const auto [down, groups] = matrix_shape(scales);
  if (down != rows || groups < 1) require_shape(scales, {rows, std::max<Index>(groups, 1)});
  const Coding promised = module.said.of(module.name);
  if (!module.has(module.name + ".biases")) return read_microscaled_mlx(module, weight, scales, promised);
  const Tensor biases = module.take(module.name + ".biases");
  require_shape(biases, scales.shape);
  require_dtype(biases, {scales.dtype});
  const int bits = bits_in(promised.type);
  if (bits == 0) {
    fail(to_string(weight), " is affine, of ", words * 32 / groups, " bits a group, and ",
         module.said.where().empty() ? "no config" : module.said.where(),
         " says how many a number has: expected bits and group_size");
  }
  const Index cols = words * 32 / bits;
  Coding coding{.type = int_type(bits), .rows = 1, .cols = cols / groups, .zeros = true};
  if (words * 32 % bits != 0 || cols % groups != 0 || *coding.cols % 8 != 0) {
    fail(to_string(weight), " has shape ", to_string(weight.shape), ", which is ", cols, " numbers of ", bits,
         " bits a row, expected a whole number for each of ", groups, " groups");
  }
  module.require_promised(weight, coding, promised);
  const Index size = dtype_bits(scales.dtype) / 8, group = *coding.cols;
  return with_scales(scales, [&, r = rows, w = words, n = groups]<class T>(T) {
    require_finite<T>(biases);
    return with_bits(bits, [&](auto b) {
      return made(affine<b, T>, r, cols, {weight.bytes.data(), 4 * w}, {scales.bytes.data(), n * size, 1, group},
                  {biases.bytes.data(), n * size, 1, group}, 1, dtype_of<T>(), coding);
    });
  });
}

}  // namespace moe::inline MOE_TARGET::io::detail
