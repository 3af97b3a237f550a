/// @file  The tensors that the MoE layers of a GGUF file have.
#pragma once

#include <cstddef>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "moe/core/types.hpp"
#include "moe/io/tensor.hpp"

namespace moe::inline MOE_TARGET::io::detail {

/// What follows "blk.3." in a name; empty for what is of no layer.
inline std::string_view end_in_layer(std::string_view name) {
  if (!name.starts_with("blk.")) return {};
  const std::size_t dot = name.find('.', 4);
  return dot == name.npos ? std::string_view() : name.substr(dot + 1);
}

/// Which tensors its MoE layers have, and how wide they are.
struct GgufBlocks {
  std::set<std::string, std::less<>> ends = {};  // of names
  Index d_ff = 0, d_ff_shared = 0, d_ff_dense = 0;

  bool have(std::string_view end) const { return ends.contains(end); }
};

inline GgufBlocks blocks_of(const std::vector<Tensor>& tensors) {
  constexpr std::string_view of_experts = "ffn_down_exps.weight";
  std::set<std::string> sparse;  // "blk.3."
  for (const Tensor& tensor : tensors) {
    if (end_in_layer(tensor.name) == of_experts) {
      sparse.insert(tensor.name.substr(0, tensor.name.size() - of_experts.size()));
    }
  }
  GgufBlocks blocks;
  for (const Tensor& tensor : tensors) {
    const std::string_view end = end_in_layer(tensor.name);
    if (!sparse.contains(tensor.name.substr(0, tensor.name.size() - end.size()))) continue;
    blocks.ends.emplace(end);
    const Index width = tensor.shape.empty() ? 1 : tensor.shape.back();
    if (end == of_experts && blocks.d_ff == 0) blocks.d_ff = width;
    if (end == "ffn_down_shexp.weight" && blocks.d_ff_shared == 0) blocks.d_ff_shared = width;
    if (end == "ffn_down.weight" && blocks.d_ff_dense == 0) blocks.d_ff_dense = width;
  }
  return blocks;
}

/// Files leave out outermost sizes of 1: one expert, one row.
inline void restore_outer_sizes(Tensor& tensor) {
  const std::string_view end = end_in_layer(tensor.name);
  std::size_t rank = 0;
  if (end.ends_with("_exps.weight")) rank = 3;
  if (end.ends_with("_exps.bias") || end.ends_with("_shexp.weight") || end == "ffn_gate_inp.weight") rank = 2;
  while (tensor.shape.size() < rank) tensor.shape.insert(tensor.shape.begin(), 1);
}

}  // namespace moe::inline MOE_TARGET::io::detail
