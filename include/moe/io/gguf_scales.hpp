/// @file  What a GGUF file multiplies whole matrices of weights by: NVFP4's second scale.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "moe/core/quantized.hpp"
#include "moe/core/types.hpp"
#include "moe/io/coded_tensor.hpp"
#include "moe/io/error.hpp"
#include "moe/io/tensor.hpp"

namespace moe::inline MOE_TARGET::io::detail {

/// Tensors that have to do with scales of weights and are none of a layer's parameters: scales, which are in what the
/// weights decode to, and those of activations, which stay in float.
inline constexpr std::string_view scales_beside_weights =
    "ffn_gate_exps.scale|ffn_up_exps.scale|ffn_down_exps.scale|ffn_gate_shexp.scale|ffn_up_shexp.scale|"
    "ffn_down_shexp.scale|ffn_gate.scale|ffn_up.scale|ffn_down.scale|"
    "ffn_gate_exps.input_scale|ffn_up_exps.input_scale|ffn_down_exps.input_scale|ffn_gate_shexp.input_scale|"
    "ffn_up_shexp.input_scale|ffn_down_shexp.input_scale|ffn_gate.input_scale|ffn_up.input_scale|ffn_down.input_scale";

inline constexpr std::string_view end_of_scale = ".scale", end_of_input_scale = ".input_scale";

/// "blk.3.ffn_up_exps" of "blk.3.ffn_up_exps.scale"; empty of what has another end, or is beside no weight of an FFN.
inline std::string_view scaled_module(std::string_view name, std::string_view end = end_of_scale) {
  if (!name.starts_with("blk.") || !name.ends_with(end)) return {};
  const std::string_view module = name.substr(0, name.size() - end.size());
  const std::string_view last = module.substr(module.rfind('.') + 1);
  constexpr std::array<std::string_view, 3> parts = {"ffn_gate", "ffn_up", "ffn_down"};
  const bool is_one = std::ranges::any_of(parts, [&](std::string_view part) {
    if (!last.starts_with(part)) return false;
    const std::string_view of = last.substr(part.size());
    return of.empty() || of == "_exps" || of == "_shexp";
  });
  return is_one ? module : std::string_view();
}

/// The factor of each of so many matrices, of a tensor of one for each, or of one for all.
/// @throws Error naming the tensor and what was expected, unless they are so many finite numbers of F32.
inline std::vector<float> factors_in(const Tensor& scales, Index num_matrices) {
  if (scales.dtype != dtype_name<float>) fail(to_string(scales), " has dtype ", scales.dtype, ", expected F32");
  const auto numbers = as<float>(scales);
  if (std::ssize(numbers) != num_matrices) {
    fail(to_string(scales), " has shape ", to_string(scales.shape), ", expected [", num_matrices,
         "], a factor of each matrix");
  }
  for (const float number : numbers) {
    if (!std::isfinite(number)) fail(to_string(scales), " holds ", number, ", expected finite numbers");
  }
  return {numbers.begin(), numbers.end()};
}

/// Each weight that has a scale beside it, with that: its matrices decode to the products.
/// @param skip  skip(name): a tensor of such a name is something else
/// @throws Error naming the scale, if there is no weight that it is of, or not as many numbers as the weight has
///         matrices; or if there is a bias as well, of which nothing says whether it is multiplied.
template <class F>
void multiply_by_scales(std::vector<Tensor>& tensors, const F& skip) {
  const auto find = [&](const std::string& name) {
    const auto found = std::ranges::find(tensors, name, &Tensor::name);
    return found == tensors.end() ? nullptr : &*found;
  };
  for (const Tensor& scales : tensors) {
    const std::string module(scaled_module(scales.name));
    if (module.empty() || skip(scales.name)) continue;
    Tensor* const weight = find(module + ".weight");
    if (weight == nullptr) fail(to_string(scales), " is there, and no \"", module, ".weight\" that it is a scale of");
    if (const Tensor* const bias = find(module + ".bias")) {
      fail(to_string(scales), " is beside \"", bias->name,
           "\": whether a bias is multiplied by a scale is not settled, so no such layer is read");
    }
    if (scales.bytes.empty()) continue;  // what is to be written
    *weight = coded(std::move(*weight));
    auto matrices = std::make_shared<std::vector<QuantizedMatrix>>(*weight->coded);
    const std::vector<float> factors = factors_in(scales, std::ssize(*matrices));
    for (std::size_t i = 0; i < factors.size(); ++i) (*matrices)[i].factor = factors[i];
    weight->coded = std::move(matrices);
  }
}

}  // namespace moe::inline MOE_TARGET::io::detail
