/// @file  FP8, FP4 and FP6 under scales, as DeepSeek, gpt-oss, compressed-tensors and ModelOpt write them.
#pragma once

#include <string>
#include <utility>

#include "moe/core/quantized.hpp"
#include "moe/core/types.hpp"
#include "moe/formats/fp8.hpp"
#include "moe/formats/mx.hpp"
#include "moe/formats/nvfp4.hpp"
#include "moe/io/codings/coded_module.hpp"
#include "moe/io/error.hpp"
#include "moe/io/quantization.hpp"
#include "moe/io/tensor.hpp"

namespace moe::inline MOE_TARGET::io::detail {

inline constexpr Family fp8_of_deepseek{"FP8 beside its weight_scale_inv, or its scale", {{{"fp8"}}}};
inline constexpr Family fp8_of_rows{"FP8 with a weight_scale for each row",
                                    {{{"compressed-tensors", "float-quantized"},
                                      {"compressed-tensors", "naive-quantized"},
                                      {"compressed-tensors", "mxfp8-quantized"},
                                      {"modelopt"}}}};
inline constexpr Family fp8_of_many{"FP8 beside its weight_scale",
                                    {{{"compressed-tensors", "float-quantized"},
                                      {"compressed-tensors", "naive-quantized"},
                                      {"compressed-tensors", "mxfp8-quantized"},
                                      {"modelopt"},
                                      {"fp8"}}}};
inline constexpr Family nvfp4_of_compressed_tensors{"NVFP4 as compressed-tensors packs it",
                                                    {{{"compressed-tensors", "nvfp4-pack-quantized"}}}};
inline constexpr Family nvfp4_of_modelopt{"NVFP4 of ModelOpt", {{{"modelopt"}}}};
inline constexpr Family mxfp4_of_compressed_tensors{"MXFP4 as compressed-tensors packs it",
                                                    {{{"compressed-tensors", "mxfp4-pack-quantized"}}}};
inline constexpr Family mxfp6_of_compressed_tensors{"MXFP6 as compressed-tensors packs it",
                                                    {{{"compressed-tensors", "mxfp6-pack-quantized"}}}};
inline constexpr Family mxfp4_of_gpt_oss{"MXFP4 in the blocks of gpt-oss", {{{"mxfp4"}}}};
inline constexpr Family fp4_of_deepseek{"FP4 in bytes, as DeepSeek-V4 has it", {{{"fp8"}}}};

/// DeepSeek's and transformers' "_scale_inv", compressed-tensors' and ModelOpt's "_scale", DeepSeek-V4's ".scale".
inline QuantizedWeight read_fp8(CodedModule& module) {
  const Tensor weight = module.take(module.weight);
  const auto shape = matrix_shape(weight);
  const Index rows = shape.first, cols = shape.second;
  const std::string beside = module.has(module.weight + "_scale_inv") ? module.weight + "_scale_inv"
                             : module.has(module.weight + "_scale")   ? module.weight + "_scale"
                             : module.has(module.name + ".scales")    ? module.name + ".scales"
                             : module.has(module.name + ".scale")     ? module.name + ".scale"
                                                                      : module.weight + "_scale_inv";
  const Tensor scales = module.take(beside);
  const bool is_deepseeks = beside != module.weight + "_scale";
  module.require_family(weight, is_deepseeks ? fp8_of_deepseek : fp8_of_many);
  Coding promised = module.said.of(module.name);
  if (promised.type == "FP8" && scales.dtype == "U8") promised.rows = 1, promised.cols = 32;
  Coding coding{.type = scales.dtype == "U8" ? "MXFP8" : "FP8"};
  if (promised.type != "FP8" || scales.dtype != "U8") module.require_promised(weight, coding, promised);
  const BytePlane its_scales = module.plane_of(scales, rows, cols, coding, promised);
  if (!is_deepseeks && coding.rows == 1 && coding.cols == 0) module.require_family(weight, fp8_of_rows);
  if (scales.dtype != "U8" || promised.type != "FP8") module.require_promised(weight, coding, promised);
  const BytePlane codes{weight.bytes.data(), cols};
  if (scales.dtype == "U8") {
    require_finite_exponents(scales);
    return made(mxfp8, rows, cols, codes, its_scales, {}, 1, "BF16", coding);
  }
  if (scales.dtype == "F8_E8M0") {
    require_finite<moe::detail::E8m0>(scales);
    return made(moe::fp8<moe::detail::E8m0>, rows, cols, codes, its_scales, {}, 1, "F32", coding);
  }
  return with_scales(scales, [&]<class T>(T) {
    return made(moe::fp8<T, T>, rows, cols, codes, its_scales, {}, 1, dtype_of<T>(), coding);
  });
}

inline QuantizedWeight read_nvfp4(CodedModule& module, const Tensor& codes, GlobalScale global) {
  module.require_family(codes, global == GlobalScale::divides ? nvfp4_of_compressed_tensors : nvfp4_of_modelopt);
  const auto [rows, bytes] = matrix_shape(codes);
  const Tensor scales = module.take(module.weight + "_scale");
  require_dtype(scales, {"F8_E4M3"});
  require_finite<moe::detail::E4m3>(scales);
  const Tensor factors = module.take(module.weight + (global == GlobalScale::divides ? "_global_scale" : "_scale_2"));
  require_dtype(factors, {"F32"});
  require_finite<float>(factors);
  if (element_count(factors) != 1) {
    fail(to_string(factors), " has shape ", to_string(factors.shape), ", expected one number");
  }
  const float factor = moe::detail::number_at<float>(factors.bytes.data(), 0);
  if (global == GlobalScale::divides && factor == 0) {
    fail(to_string(factors), " is 0, by which scales are divided: expected another number");
  }
  const Index cols = 2 * bytes, groups = (cols + 15) / 16;
  require_shape(scales, {rows, groups});
  const Coding coding{.type = "NVFP4", .rows = 1, .cols = 16};
  module.require_promised(codes, coding, module.said.of(module.name));
  const BytePlane its_scales{scales.bytes.data(), groups, 1, 16};
  if (global == GlobalScale::divides) {
    return made(moe::nvfp4<GlobalScale::divides, bfloat16>, rows, cols, {codes.bytes.data(), bytes}, its_scales, {},
                factor, "BF16", coding);
  }
  return made(moe::nvfp4<GlobalScale::multiplies, float>, rows, cols, {codes.bytes.data(), bytes}, its_scales, {},
              factor, "F32", coding);
}

/// MXFP4 or MXFP6, told apart by how many bytes 32 numbers take.
inline QuantizedWeight read_microscaled(CodedModule& module, const Tensor& codes) {
  const auto [rows, bytes] = matrix_shape(codes);
  const Tensor scales = module.take(module.weight + "_scale");
  require_dtype(scales, {"U8", "F8_E8M0"});
  const auto [down, groups] = matrix_shape(scales);
  const bool six = bytes == 24 * groups;
  if ((!six && bytes != 16 * groups) || down != rows) {
    fail(to_string(scales), " has shape ", to_string(scales.shape), ", expected [", rows, ", ", bytes / 16,
         "], a scale for each 16 bytes of ", to_string(codes.shape), ", or for each 24");
  }
  module.require_family(codes, six ? mxfp6_of_compressed_tensors : mxfp4_of_compressed_tensors);
  const Coding coding{.type = six ? "MXFP6" : "MXFP4", .rows = 1, .cols = 32};
  module.require_promised(codes, coding, module.said.of(module.name));
  if (six) require_finite_exponents(scales);
  return made(six ? mxfp6 : mxfp4, rows, 32 * groups, {codes.bytes.data(), bytes}, {scales.bytes.data(), groups, 1, 32},
              {}, 1, "BF16", coding);
}

/// [rows, groups, 16] and [rows, groups].
inline QuantizedWeight read_gpt_oss(CodedModule& module) {
  const Tensor blocks = module.take(module.weight + "_blocks"), scales = module.take(module.weight + "_scales");
  module.require_family(blocks, mxfp4_of_gpt_oss);
  require_dtype(blocks, {"U8"});
  require_dtype(scales, {"U8"});
  if (blocks.shape.size() != 3 || blocks.shape[2] != 16) {
    fail(to_string(blocks), " has shape ", to_string(blocks.shape), " an expert, expected [rows, groups, 16]");
  }
  const Index rows = blocks.shape[0], groups = blocks.shape[1];
  require_shape(scales, {rows, groups});
  const Coding coding{.type = "MXFP4", .rows = 1, .cols = 32};
  module.require_promised(blocks, coding, module.said.of(module.name));
  return made(mxfp4, rows, 32 * groups, {blocks.bytes.data(), 16 * groups}, {scales.bytes.data(), groups, 1, 32}, {}, 1,
              "BF16", coding);
}

/// DeepSeek-V4's experts, beside FP8 elsewhere.
inline QuantizedWeight read_fp4_in_bytes(CodedModule& module, const std::string& its_scales) {
  const Tensor weight = module.take(module.weight), scales = module.take(its_scales);
  module.require_family(weight, fp4_of_deepseek);
  const auto [rows, bytes] = matrix_shape(weight);
  require_dtype(scales, {"F8_E8M0", "U8"});
  if (bytes % 16 != 0) {
    fail(to_string(weight), " has shape ", to_string(weight.shape), ", expected rows of a multiple of 16 bytes");
  }
  require_shape(scales, {rows, bytes / 16});
  if (scales.dtype == "F8_E8M0") require_finite<moe::detail::E8m0>(scales);
  const Coding coding{.type = "MXFP4", .rows = 1, .cols = 32};
  if (const Coding promised = module.said.of(module.name); promised.type != "FP8")
    module.require_promised(weight, coding, promised);
  return made(mxfp4, rows, 2 * bytes, {weight.bytes.data(), bytes}, {scales.bytes.data(), bytes / 16, 1, 32}, {}, 1,
              "BF16", coding);
}

}  // namespace moe::inline MOE_TARGET::io::detail
