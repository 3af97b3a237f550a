/// @file  A bank of float experts in any of the coded types.
#pragma once

#include <stdexcept>
#include <string>

#include "iq4_xs.hpp"
#include "moe/core/quantized.hpp"
#include "moe/core/task.hpp"
#include "moe/core/types.hpp"
#include "moe/core/weight_stack.hpp"
#include "moe/experts/gated_ffn_bank.hpp"
#include "moe/formats/encode_ggml.hpp"
#include "moe/formats/encode_k.hpp"
#include "moe/formats/encode_matrix.hpp"
#include "moe/surgery/quantize.hpp"
#include "options.hpp"

namespace moe::bench {

namespace detail {

/// Rounded to bfloat16, of which published INT4 has its scales and its numbers.
inline GatedFfnBank<bfloat16> rounded(const GatedFfnBank<float>& bank) {
  const auto stack = [](const WeightStack<float>& from) {
    WeightStack<bfloat16> to(from.num_experts(), from.rows(), from.cols());
    for (Index e = 0; e < from.num_experts(); ++e) to.owned(e) = from[e].cast<bfloat16>();
    return to;
  };
  return {stack(bank.w_gate()), stack(bank.w_up()), stack(bank.w_down())};
}

}  // namespace detail

/// @pre is_coded(type)
/// @throws std::invalid_argument naming both numbers unless the type's blocks divide the matrices.
inline GatedFfnBank<Quantized> coded_bank(WeightType type, const GatedFfnBank<float>& bank, ExecutorRef executor) {
  switch (type) {
    case WeightType::f32:
    case WeightType::bf16:
    case WeightType::f16:
      break;
    case WeightType::q8_0:
      return quantize<Q8_0>(bank, {}, executor);
    case WeightType::q6_k:
      return quantize<Q6_K>(bank, {}, executor);
    case WeightType::q5_k:
      return quantize<Q5_K>(bank, {}, executor);
    case WeightType::q5_1:
      return quantize<Q5_1>(bank, {}, executor);
    case WeightType::q5_0:
      return quantize<Q5_0>(bank, {}, executor);
    case WeightType::q4_k:
      return quantize<Q4_K>(bank, {}, executor);
    case WeightType::q4_1:
      return quantize<Q4_1>(bank, {}, executor);
    case WeightType::q4_0:
      return quantize<Q4_0>(bank, {}, executor);
    case WeightType::iq4_nl:
      return quantize<IQ4_NL>(bank, {}, executor);
    case WeightType::iq4_xs:
      return quantize<IQ4_XS>(bank, {}, executor);
    case WeightType::gguf_mxfp4:
      return quantize<GgmlMxfp4>(bank, {}, executor);
    case WeightType::gguf_nvfp4:
      return quantize<GgmlNvfp4>(bank, {}, executor);
    case WeightType::q3_k:
      return quantize<Q3_K>(bank, {}, executor);
    case WeightType::q2_k:
      return quantize<Q2_K>(bank, {}, executor);
    case WeightType::tq2_0:
      return quantize<TQ2_0>(bank, {}, executor);
    case WeightType::tq1_0:
      return quantize<TQ1_0>(bank, {}, executor);
    case WeightType::fp8:
      return quantize<BlockFp8>(bank, {}, executor);
    case WeightType::int4_g32:
      return quantize<GroupInt4<32>>(detail::rounded(bank), {}, executor);
    case WeightType::int4_g128:
      return quantize<GroupInt4<128>>(detail::rounded(bank), {}, executor);
    case WeightType::mxfp4:
      return quantize<GroupMxfp4>(bank, {}, executor);
    case WeightType::nvfp4:
      return quantize<GroupNvfp4>(bank, {}, executor);
  }
  throw std::invalid_argument(std::string("coded_bank: ") + name_of(type) + " is not coded");
}

}  // namespace moe::bench
