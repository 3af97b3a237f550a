/// @file  The tensors of one coded weight as a QuantizedMatrix.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "moe/formats/nvfp4.hpp"
#include "moe/io/codings/bitsandbytes.hpp"
#include "moe/io/codings/coded_module.hpp"
#include "moe/io/codings/gptq_awq.hpp"
#include "moe/io/codings/integers.hpp"
#include "moe/io/codings/mlx.hpp"
#include "moe/io/codings/small_floats.hpp"
#include "moe/io/error.hpp"
#include "moe/io/quantization.hpp"
#include "moe/io/safetensors.hpp"
#include "moe/io/store/lender.hpp"
#include "moe/io/tensor.hpp"

namespace moe::inline MOE_TARGET::io {

namespace detail {

/// Integers, MXFP4, MXFP6 or NVFP4, as compressed-tensors packs them.
inline QuantizedWeight read_compressed_tensors(CodedModule& module) {
  if (const Tensor* const weight = module.tensors.find(module.weight)) {
    fail(to_string(*weight), " has dtype ", weight->dtype, ", and beside it is \"", module.weight,
         "_packed\": expected one of the two");
  }
  const Tensor codes = module.take(module.weight + "_packed");
  if (codes.dtype == "U8") {
    const Tensor* const scales = module.tensors.find(module.weight + "_scale");
    const bool is_nvfp4 =
        module.has(module.weight + "_global_scale") || (scales != nullptr && scales->dtype == "F8_E4M3");
    return is_nvfp4 ? read_nvfp4(module, codes, GlobalScale::divides) : read_microscaled(module, codes);
  }
  require_dtype(codes, {"I32", "U8"});
  return read_packed_int(module, codes);
}

/// Which software has written it, by the names and types of its tensors; none, if there is no such weight.
inline std::optional<QuantizedWeight> find_coding(CodedModule& module) {
  if (module.has(module.weight + "_packed")) return read_compressed_tensors(module);
  if (module.has(module.weight + "_blocks")) return read_gpt_oss(module);
  if (module.has(module.name + ".qweight")) return read_gptq_or_awq(module);
  if (module.has(module.name + "._weight_qdata")) return read_torchao(module);
  const Tensor* const weight = module.tensors.find(module.weight);
  if (weight == nullptr) return {};
  const std::string& dtype = weight->dtype;
  if (dtype == "F8_E4M3") return read_fp8(module);
  if (dtype == "U32" || module.has(module.name + ".scales")) return read_mlx(module);
  if (dtype == "U8" && module.has(module.weight + ".absmax")) return read_bitsandbytes(module);
  if (dtype == "U8" && module.has(module.weight + "_scale_2"))
    return read_nvfp4(module, module.take(module.weight), GlobalScale::multiplies);
  if (dtype == "I8" && module.has(module.name + ".SCB")) return read_int8_of_bitsandbytes(module);
  if (dtype == "I8" && module.has(module.name + ".scale")) return read_fp4_in_bytes(module, module.name + ".scale");
  if (dtype == "I8" && module.has(module.weight + "_scale_inv"))
    return read_fp4_in_bytes(module, module.weight + "_scale_inv");
  if (dtype == "I8" && module.has(module.weight + "_scale")) return read_int8(module);
  fail(to_string(*weight), " has dtype ", dtype,
       ", expected F32, BF16, F16, or F8_E4M3, I8, U8 or U32 with scales beside it", " (", module.weight,
       "_scale or the like)");
}

}  // namespace detail

/// The weight of a module, in place where a row's codes lie together, else repacked; none, if it is not coded.
/// @param module   "model.layers.0.mlp.experts.3.gate_proj", whose tensors are ".weight", ".weight_scale", …; or
///                 "model.layers.0.mlp.experts.gate_up_proj" of all experts, itself or "_blocks" and "_scales"
/// @param said     what the model's config promises; tensors must be that
/// @param experts  which of them, where tensors hold those of all
/// @param lender   who repacks what it has read; null: it is repacked now
/// @throws Error naming file, tensor, and what was found and expected, if tensors lack or do not fit each other or what
///         is said, or scales are no finite numbers.
inline std::optional<QuantizedWeight> quantized_weight(const Tensors& tensors, std::string_view module,
                                                       const Quantization& said = {},
                                                       const std::optional<OfExperts>& experts = {},
                                                       ExpertLender* lender = nullptr) {
  detail::CodedModule its(tensors, module, said, experts, lender);
  if (its.is_plain()) return {};
  std::optional<QuantizedWeight> found = detail::find_coding(its);
  if (found) return its.finished(std::move(*found));
  return {};
}

}  // namespace moe::inline MOE_TARGET::io
