/// @file  The names and layouts in which files hold the weights of experts.
#pragma once

#include <array>
#include <cstddef>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "moe/core/types.hpp"
#include "moe/io/architecture.hpp"
#include "moe/io/error.hpp"
#include "moe/io/tensor.hpp"
#include "moe/io/weight_tensors.hpp"

namespace moe::inline MOE_TARGET::io::detail {

/// How matrices of experts, or of an FFN, lie in tensors.
enum class Layout {
  separate,  ///< three, or two, tensors an expert, (out × in)
  fused,     ///< gate and up in one, below each other or alternately; of all experts, (experts × out × in) or turned
  stacked,   ///< three, or two, tensors of all experts, (experts × out × in)
  rows,      ///< the same as matrices (experts · d_ff × d_model), down as it is multiplied from behind: DBRX
};

/// One spelling. Of fused ones `up` is both.
struct Spelling {
  Layout layout;
  bool gated;
  std::string_view gate, up, down;
  bool interleaved = false;  // of fused ones: gate and up rows alternate, whatever the architecture says
};

inline constexpr auto expert_spellings = std::to_array<Spelling>({
    {Layout::separate, true, "#.gate_proj.weight", "#.up_proj.weight", "#.down_proj.weight"},
    {Layout::separate, true, "#.w1.weight", "#.w3.weight", "#.w2.weight"},
    {Layout::fused, true, "", "gate_up_proj", "down_proj"},
    {Layout::fused, true, "", "input_linear.weight", "output_linear.weight"},           // Granite
    {Layout::fused, true, "", "fc1.weight", "fc2.weight"},                              // Aria
    {Layout::fused, true, "", "w13_weight", "w2_weight", true},                         // Inkling 2
    {Layout::stacked, true, "gate_proj.weight", "up_proj.weight", "down_proj.weight"},  // MLX, Step 3.7
    {Layout::stacked, true, "gate_proj", "up_proj", "down_proj"},
    {Layout::stacked, true, "ffn_gate_exps.weight", "ffn_up_exps.weight", "ffn_down_exps.weight"},  // GGUF
    {Layout::fused, true, "", "ffn_gate_up_exps.weight", "ffn_down_exps.weight"},
    {Layout::rows, true, "w1", "v1", "w2"},
    {Layout::separate, false, "", "#.up_proj.weight", "#.down_proj.weight"},
    {Layout::separate, false, "", "expert_#.wi.weight", "expert_#.wo.weight"},    // Switch
    {Layout::separate, false, "", "expert_#.fc1.weight", "expert_#.fc2.weight"},  // NLLB
    {Layout::stacked, false, "", "up_proj", "down_proj"},
    {Layout::stacked, false, "", "up_proj.weight", "down_proj.weight"},
    {Layout::stacked, false, "", "ffn_up_exps.weight", "ffn_down_exps.weight"},  // GGUF
});

/// Of an FFN that is one: a shared expert, a dense layer. Its prefix ends with a dot.
inline constexpr auto ffn_spellings = std::to_array<Spelling>({
    {Layout::separate, true, "gate_proj.weight", "up_proj.weight", "down_proj.weight"},
    {Layout::separate, true, "w1.weight", "w3.weight", "w2.weight"},
    {Layout::separate, true, "linear_gate.weight", "up_proj.weight", "down_proj.weight"},  // HunYuan 4
    {Layout::separate, true, "linear.weight", "linear_v.weight", "linear_1.weight"},
    {Layout::fused, true, "", "input_linear.weight", "output_linear.weight"},  // Granite
    {Layout::fused, true, "", "gate_up_proj.weight", "down_proj.weight"},      // MiniMax M3
    {Layout::separate, false, "", "up_proj.weight", "down_proj.weight"},
    {Layout::separate, false, "", "wi.weight", "wo.weight"},
    {Layout::separate, false, "", "fc1.weight", "fc2.weight"},
    // GGUF: shared experts, then dense FFNs, which may lie beside them.
    {Layout::separate, true, "ffn_gate_shexp.weight", "ffn_up_shexp.weight", "ffn_down_shexp.weight"},
    {Layout::separate, true, "ffn_gate.weight", "ffn_up.weight", "ffn_down.weight"},
    {Layout::separate, false, "", "ffn_up_shexp.weight", "ffn_down_shexp.weight"},
    {Layout::separate, false, "", "ffn_up.weight", "ffn_down.weight"},
});

/// What ERNIE 4.5 VL's files call the router of images, beside that of text.
inline constexpr std::string_view second_modality = "gate.weight_1";

/// Whether a block has a router and experts of each modality; else one part of it lies by itself.
inline bool is_by_modality(const WeightTensors& tensors, const Architecture& architecture) {
  return architecture.router_kind == RouterKind::by_modality && tensors.contains(second_modality);
}

/// Such a part has no shared expert: that is beside it.
inline bool is_part_of_block(const WeightTensors& tensors, const Architecture& architecture) {
  return architecture.router_kind == RouterKind::by_modality && !tensors.contains(second_modality);
}

/// The names that were found, relative to the block.
struct Names {
  Layout layout = Layout::separate;
  std::string gate, up, down;
  bool interleaved = false;
};

/// Where the matrices of an FFN lie: gate and up (d_ff × in), down (in × d_ff).
struct FfnParts {
  StoredPart gate, up, down;
};

/// Whoever reads a file, and whoever writes one, asks this.
/// @param turned     of fused ones: is each matrix stored (in × out)?
/// @param alternate  of fused ones: do the rows of gate and up?
inline FfnParts ffn_parts(Layout layout, Index in, Index ff, bool turned, bool alternate) {
  if (layout == Layout::fused) {
    const Index first_up = alternate ? 1 : ff, step = alternate ? 2 : 1;
    return {{2 * ff, 0, step, ff, in, turned}, {2 * ff, first_up, step, ff, in, turned}, {in, 0, 1, in, ff, turned}};
  }
  return {{ff, 0, 1, ff, in}, {ff, 0, 1, ff, in}, {in, 0, 1, in, ff, layout == Layout::rows}};
}

/// Both shapes together say it: gate and up (2·d_ff × in), down (in × d_ff), or both turned.
inline bool is_turned(const WeightTensors& tensors, const Names& names, Index in, Index ff) {
  const auto shape_is = [&](const std::string& name, Index rows, Index cols) {
    const Tensor* const tensor = tensors.find(name);
    return tensor != nullptr && tensor->shape == std::vector{tensors.num_stored(*tensor), rows, cols};
  };
  const int straight = shape_is(names.up, 2 * ff, in) + shape_is(names.down, in, ff);
  const int turned = shape_is(names.up, in, 2 * ff) + shape_is(names.down, ff, in);
  return turned > straight;
}

/// "…_bias" of a tensor of all experts, "….bias" of "….weight".
inline std::string bias_name(const std::string& weight) {
  constexpr std::string_view end = ".weight";
  if (!weight.ends_with(end)) return weight + "_bias";
  return weight.substr(0, weight.size() - end.size()) + ".bias";
}

/// The first spelling, below the first prefix, that is all there; else in part; else the first.
template <std::size_t n>
Names find_names(const WeightTensors& tensors, const std::array<Spelling, n>& spellings, std::string_view prefixes,
                 bool gated) {
  std::optional<Names> usual, partly;
  const auto there = [&](const std::string& name, Layout layout) {
    if (name.find('#') != name.npos) {
      const Index first = tensors.num_read() > 0 ? tensors.expert(0) : 0;
      return tensors.contains(WeightTensors::numbered(name, first)) ||
             tensors.contains(WeightTensors::numbered(name, 0));
    }
    // A dense FFN has names as stacked experts have, but a dimension less.
    return tensors.contains(name) && (layout != Layout::stacked || tensors.num_dimensions(name) == 3);
  };
  for (const std::string_view prefix : alternatives(prefixes)) {
    for (const auto& [layout, is_gated, gate, up, down, interleaved] : spellings) {
      if (is_gated != gated) continue;
      const auto full = [&](std::string_view name) {
        return name.empty() ? "" : std::string(prefix) + std::string(name);
      };
      Names names{layout, full(gate), full(up), full(down), interleaved};
      const int found =
          there(names.up, layout) + there(names.down, layout) + (!gate.empty() && there(names.gate, layout));
      if (found == (gate.empty() ? 2 : 3)) return names;
      if (found > 0 && !partly) partly = names;
      if (!usual) usual = std::move(names);
    }
  }
  return partly ? *partly : *usual;
}

}  // namespace moe::inline MOE_TARGET::io::detail
