/// @file  Where each number of a layer lies in the tensors of its block.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "moe/core/types.hpp"
#include "moe/experts/any_activation.hpp"
#include "moe/io/architecture.hpp"
#include "moe/io/architectures.hpp"
#include "moe/io/error.hpp"
#include "moe/io/expert_tensors.hpp"
#include "moe/io/weight_tensors.hpp"
#include "moe/models/moe_shape.hpp"

namespace moe::inline MOE_TARGET::io::detail {

/// A parameter (rows × cols), whose number (r, c) is number first + r·row_step + c·col_step of a tensor.
struct StoredParameter {
  std::string parameter;     // as the layer calls it: "experts.3.gate_proj.weight"
  std::string tensor;        // in full
  std::vector<Index> shape;  // of the whole tensor
  Index rows, cols;
  Index first = 0, row_step = 0, col_step = 1;
  std::string like = {};  // what is there of the same kind, and says the type: "….experts.0.w1.weight"
  Index spare = 0;        // how many numbers of the tensor are nobody's: its last
};

/// Lists what LayerLoader reads of a block, by the same names and layouts, for a block of these sizes.
class BlockForm {
 public:
  /// @param tensors   what is there: the form that is kept
  /// @param experts   names of experts' tensors there
  /// @param shape     of the block as it is there
  BlockForm(const WeightTensors& tensors, const Config& config, const Architecture& architecture, const Names& experts,
            const MoeShape& shape)
      : tensors_(tensors.with_spare(shape.num_zero_experts)),
        config_(config),
        names_(architecture),
        experts_(experts),
        shape_(shape) {
    if (is_part_of_block(tensors, architecture)) shape_.d_ff_shared = 0;
  }

  /// @param num_experts  and d_ff: of the block as it is to be
  std::vector<StoredParameter> list(Index num_experts, Index d_ff) const {
    std::vector<StoredParameter> all;
    add_router(all, num_experts);
    const Index in = shape_.d_latent > 0 ? shape_.d_latent : d();
    const bool turned = is_turned(tensors_, experts_, in, shape_.d_ff);
    add_experts(all, experts_, {num_experts, 0, 0, in, d_ff, turned});
    if (is_by_modality(tensors_, names_)) {
      add_experts(all, experts_, {num_experts, num_experts, num_experts, in, config_.integer_in_list(names_.d_ff, 1)});
    }
    if (const Index joint = num_joint(); joint > 0) {
      const Names names = find_names(tensors_.of_others(0, joint), expert_spellings, names_.shared, true);
      add_experts(all, names, {joint, num_experts, 0, in, shape_.d_ff});
    }
    add_around(all);
    if (shape_.d_ff_shared > 0) {
      add_ffn(all, "shared_expert.", find_names(tensors_, ffn_spellings, names_.shared, is_gated(shape_.hidden_shared)),
              shape_.d_ff_shared, shape_.expert_bias);
      if (shape_.shared_gate) add(all, "shared_expert_gate.weight", names_.shared_gate, {1, d()});
    }
    return all;
  }

  /// Of the dense FFN of this name below the block.
  std::vector<StoredParameter> list_ffn(const std::string& name) const {
    const Names names = find_names(tensors_, ffn_spellings, name + '.', is_gated(shape_.hidden_shared));
    const std::vector<Index> down = tensors_.shape(names.down);
    std::vector<StoredParameter> all;
    add_ffn(all, "", names, down.back(), tensors_.contains(bias_name(names.down)));
    return all;
  }

  /// Tensors of experts that are there, all by their full names.
  std::vector<std::string> expert_tensors() const {
    std::vector<std::string> all;
    for (const std::string& pattern : {experts_.gate, experts_.up, experts_.down}) {
      if (pattern.empty()) continue;
      for (const std::string& name : {pattern, bias_name(pattern)}) {
        const Index separate = shape_.num_experts * (is_by_modality(tensors_, names_) ? 2 : 1);
        for (Index e = 0; e < (experts_.layout == Layout::separate ? separate : 1); ++e) {
          const std::string one = experts_.layout == Layout::separate ? WeightTensors::numbered(name, e) : name;
          if (tensors_.contains(one)) all.push_back(tensors_.full_name(one));
        }
      }
    }
    return all;
  }

 private:
  using List = std::vector<StoredParameter>;

  Index d() const { return shape_.d_model; }

  /// A matrix or vector that is a tensor.
  void add(List& all, std::string parameter, std::string_view names, std::vector<Index> shape) const {
    const Index cols = shape.back(), rows = shape.size() > 1 ? shape[0] : 1;
    all.push_back({std::move(parameter), tensors_.full_name(names), std::move(shape), rows, cols, 0, cols});
  }

  /// Shared experts that the router weighs.
  Index num_joint() const {
    return names_.router_kind == RouterKind::joint ? std::get<TopKOptions>(shape_.router).always_chosen : 0;
  }

  /// Two routers whose weights lie turned.
  void add_routers(List& all, Index n) const {
    for (const Index which : {0, 1}) {
      const std::string gate = "gate." + std::to_string(which);
      const std::string_view name = which == 0 ? names_.router : second_modality;
      all.push_back({gate + ".weight", tensors_.full_name(name), {d(), n}, n, d(), 0, 1, n});
      all.push_back({gate + ".selection_bias", tensors_.full_name(names_.selection_bias), {2, n}, 1, n, which * n, n});
    }
  }

  void add_router(List& all, Index num_experts) const {
    if (is_by_modality(tensors_, names_)) return add_routers(all, num_experts);
    const Index selectable = num_experts + shape_.num_zero_experts + (names_.skips ? 1 : 0);
    const Index outputs = selectable + num_joint();
    if (names_.router_kind == RouterKind::normed) {
      add(all, "gate.proj.weight", names_.router, {outputs, d()});
      add(all, "gate.scale", "router.scale", {d()});
      return add(all, "gate.per_expert_scale", "router.per_expert_scale", {outputs});
    }
    if (names_.router_kind == RouterKind::carried) {
      const Index size = config_.integer("router_hidden_size");
      add(all, "gate.down_proj.weight", "gate.down_proj.weight", {size, d()});
      for (const char* const name : {"gate.router_mlp.fc1.weight", "gate.router_mlp.fc2.weight"}) {
        add(all, name, name, {size, size});
      }
      for (const char* const name : {"gate.down_proj.bias", "gate.router_states_scale", "gate.router_mlp.norm.weight",
                                     "gate.router_mlp.fc1.bias", "gate.router_mlp.fc2.bias"}) {
        if (tensors_.contains(name)) add(all, name, name, {size});
      }
      add(all, "gate.router_mlp.out_proj.weight", names_.router, {outputs, size});
    } else {
      add(all, "gate.weight", names_.router, {outputs, d()});
      if (names_.router_kind == RouterKind::hashed && tensors_.contains("gate.tid2eid")) return;
      if (shape_.router_bias) add(all, "gate.bias", names_.router_bias, {outputs});
    }
    if (!shape_.selection_bias) return;
    add(all, "gate.selection_bias", names_.selection_bias,
        names_.selection_bias_is_a_row ? std::vector<Index>{1, selectable} : std::vector<Index>{selectable});
  }

  struct Group {
    Index count;
    Index first;          // as the layer numbers them,
    Index first_in_file;  // and as the file does
    Index in, d_ff;
    bool turned = false;
  };

  void add_experts(List& all, const Names& names, const Group& group) const {
    const FfnParts parts =
        ffn_parts(names.layout, group.in, group.d_ff, group.turned, names.interleaved || names_.interleaved);
    const std::string& gate = names.layout == Layout::fused ? names.up : names.gate;
    for (Index i = 0; i < group.count; ++i) {
      const std::string expert = "experts." + std::to_string(group.first + i) + '.';
      const Index e = group.first_in_file + i;
      if (names_.gated) add_part(all, names, expert + "gate_proj", gate, parts.gate, e, group.count);
      add_part(all, names, expert + "up_proj", names.up, parts.up, e, group.count);
      add_part(all, names, expert + "down_proj", names.down, parts.down, e, group.count);
    }
  }

  /// A matrix of expert e of n, and its bias, if experts have any there.
  void add_part(List& all, const Names& names, const std::string& parameter, const std::string& name,
                const StoredPart& part, Index e, Index n) const {
    const auto& [all_rows, first, step, rows, cols, turned] = part;
    const bool separate = names.layout == Layout::separate;
    const auto tensor = [&](const std::string& of_all, Index expert) {
      return tensors_.full_name(separate ? WeightTensors::numbered(of_all, expert) : of_all);
    };
    std::vector<Index> shape = {turned ? cols : all_rows, turned ? all_rows : cols};
    Index spare = 0;
    if (names.layout == Layout::rows) {
      shape[0] *= n;
    } else if (!separate) {
      const Tensor* const there = tensors_.find(name);
      spare = there != nullptr ? tensors_.num_stored(*there) - tensors_.num_experts() : 0;
      shape.insert(shape.begin(), n + spare);
    }
    const Index before = separate ? 0 : e * all_rows * cols;
    all.push_back({parameter + ".weight", tensor(name, e), std::move(shape), rows, cols,
                   before + (turned ? first : first * cols), turned ? step : step * cols, turned ? all_rows : 1,
                   tensor(name, 0), spare * all_rows * cols});
    const std::string bias = bias_name(name);
    if (!tensors_.contains(separate ? WeightTensors::numbered(bias, 0) : bias)) return;
    all.push_back({parameter + ".bias", tensor(bias, e),
                   separate ? std::vector<Index>{all_rows} : std::vector<Index>{n, all_rows}, 1, rows,
                   (separate ? 0 : e * all_rows) + first, 0, step, tensor(bias, 0)});
  }

  /// What stands around the experts: under the names that the parts have as LayerLoader makes them.
  void add_around(List& all) const {
    if (shape_.d_latent > 0) {
      add_projection(all, "fc1_latent_proj", names_.latent_in, shape_.d_latent, d());
      if (!names_.latent_norm.empty()) add(all, "latent_norm.weight", names_.latent_norm, {shape_.d_latent});
      if (!names_.norm_of_answers.empty()) {
        add(all, "routed_expert_norm.weight", names_.norm_of_answers, {shape_.d_latent});
      }
      add_projection(all, "fc2_latent_proj", names_.latent_out, d(), shape_.d_latent);
    }
    if (!names_.expert_norm.empty()) {
      add(all, "experts.post_expert_norm.weight", names_.expert_norm, {shape_.d_latent > 0 ? shape_.d_latent : d()});
    }
    if (!names_.output_bias.empty()) add(all, "bias", names_.output_bias, {d()});
    if (!names_.output_norm.empty()) add(all, "post_mlp_layernorm.weight", names_.output_norm, {d()});
  }

  void add_projection(List& all, const std::string& parameter, std::string_view names, Index out, Index in) const {
    for (const std::string_view name : alternatives(names)) {
      const std::string its(name);
      if (!tensors_.contains(its + ".weight")) continue;
      add(all, parameter + ".weight", its + ".weight", {out, in});
      if (tensors_.contains(its + ".bias")) add(all, parameter + ".bias", its + ".bias", {out});
      return;
    }
  }

  /// One FFN, whose parameters begin with `scope`.
  void add_ffn(List& all, const std::string& scope, const Names& names, Index ff, bool biased) const {
    const FfnParts parts = ffn_parts(names.layout, d(), ff, false, false);
    const auto one = [&](const std::string& parameter, const std::string& name, const StoredPart& part) {
      all.push_back({scope + parameter + ".weight",
                     tensors_.full_name(name),
                     {part.all_rows, part.cols},
                     part.rows,
                     part.cols,
                     part.first * part.cols,
                     part.step * part.cols});
      if (biased && names.layout != Layout::fused) add(all, scope + parameter + ".bias", bias_name(name), {part.rows});
    };
    if (is_gated(shape_.hidden_shared))
      one("gate_proj", names.layout == Layout::fused ? names.up : names.gate, parts.gate);
    one("up_proj", names.up, parts.up);
    one("down_proj", names.down, parts.down);
  }

  const WeightTensors tensors_;
  const Config& config_;
  const Architecture& names_;
  const Names experts_;
  MoeShape shape_;
};

}  // namespace moe::inline MOE_TARGET::io::detail
