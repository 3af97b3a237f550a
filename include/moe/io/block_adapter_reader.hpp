/// @file  Reads the adapters that a file has of one MoE block, under whatever names.
#pragma once

#include <algorithm>
#include <cstddef>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "moe/core/types.hpp"
#include "moe/experts/latent_experts.hpp"
#include "moe/io/architecture.hpp"
#include "moe/io/block_adapters.hpp"
#include "moe/io/error.hpp"
#include "moe/io/expert_tensors.hpp"
#include "moe/io/fused_adapters.hpp"
#include "moe/io/mapped_file.hpp"
#include "moe/io/peft_adapters.hpp"
#include "moe/io/tensor.hpp"
#include "moe/io/weight_tensors.hpp"
#include "moe/lora/adapter.hpp"
#include "moe/lora/bank.hpp"
#include "moe/models/moe_shape.hpp"

namespace moe::inline MOE_TARGET::io::detail {

/// Reads what one file has of one block. Every tensor of it is used, or refused by name.
template <class Scalar>
class BlockAdapterReader {
 public:
  /// @param base         the block's own
  /// @param names        of_block()
  /// @param num_outputs  of the router, or of each
  BlockAdapterReader(const AdapterFile& file, const WeightTensors& base, const std::vector<NameInBlock>& names,
                     const Architecture& architecture, const MoeShape& shape, Index num_outputs,
                     const OtherExperts& others)
      : file_(file),
        weights_(file.tensors, "", 0),
        base_(base),
        names_(names),
        in_base_(architecture),
        architecture_(architecture.of_adapters ? *architecture.of_adapters : architecture),
        shape_(shape),
        num_outputs_(num_outputs),
        others_(others),
        places_(adapter_places(architecture_, shape, others)) {}

  BlockAdapters<Scalar> read() {
    found_ = {.experts = std::vector<ExpertAdapters<Scalar>>(std::size_t(shape_.num_experts + others_.count))};
    found_.of_router.dropout = found_.of_experts.dropout = found_.of_shared.dropout = file_.config.dropout();
    for (const auto& [name, relative] : names_) {
      if (relative.ends_with(a_end)) {
        read_adapter(name.substr(0, name.size() - a_end.size()),
                     std::string_view(relative).substr(0, relative.size() - a_end.size()));
      } else if (!relative.ends_with(b_end)) {
        read_whole(name, relative);
      }
    }
    give_fused();
    for (const auto& [name, relative] : names_) {
      if (taken_.contains(name)) continue;
      fail(to_string(file_.tensors.at(name)), " is of the block \"", base_.block(),
           "\", and no part of it takes it: to leave it out would change what the layer computes");
    }
    return std::move(found_);
  }

 private:
  static constexpr std::string_view a_end = ".lora_A.weight", b_end = ".lora_B.weight", weight_end = ".weight";

  /// Of all experts, until all of them are known.
  struct Fused {
    FusedAdapter<Scalar> adapter;
    std::string parameter;  // as patterns name it: "model.layers.3.mlp.experts.down_proj"
    Index matrix;
    bool of_others = false;
  };

  /// @param module  in full, without what its tensors end with
  void read_adapter(const std::string& module, std::string_view relative) {
    std::string place_name(relative);
    Index number = -1;
    auto place = places_.find(place_name);
    if (place == places_.end() && replace_number(place_name, number)) place = places_.find(place_name);
    const Index depth = place == places_.end() ? remove_wrappers(place_name, relative) : 0;
    if (depth > 0) place = places_.find(place_name);
    if (place == places_.end()) return;
    const auto& [part, matrix] = place->second;
    const bool of_others = part == AdapterPlace::parameters_of_others;
    if (depth > 0 && part != AdapterPlace::parameters_of_experts && !of_others) return;
    const Index d = shape_.d_model, in = inner(), latent = shape_.d_latent;
    switch (part) {
      case AdapterPlace::router:
        return take(module, num_outputs_, d, found_.router);
      case AdapterPlace::second_router:
        return take(module, num_outputs_, d, found_.second_router);
      case AdapterPlace::shared_gate:
        return take(module, 1, d, found_.shared_gate);
      case AdapterPlace::latent_in:
        return take(module, latent, d, found_.latent_in);
      case AdapterPlace::latent_out:
        return take(module, d, latent, found_.latent_out);
      case AdapterPlace::shared:
        return take_ffn(module, d, shape_.d_ff_shared, matrix, found_.shared);
      case AdapterPlace::expert:
        if (number < shape_.num_experts + others_.count) {
          take_ffn(module, in, d_ff(number >= shape_.num_experts), matrix, found_.experts[std::size_t(number)]);
        }
        return;
      case AdapterPlace::all_experts:
        return take_fused(module, in_model(module) + ".weight", matrix);
      case AdapterPlace::parameters_of_experts:
      case AdapterPlace::parameters_of_others:
        return take_parameters(module, depth, of_others);
    }
  }

  /// What experts read.
  Index inner() const { return shape_.d_latent > 0 ? shape_.d_latent : shape_.d_model; }

  bool is_by_modality() const { return architecture_.router_kind == RouterKind::by_modality && others_.count > 0; }

  Index d_ff(bool of_others) const { return of_others ? others_.d_ff : shape_.d_ff; }

  /// "experts.12.w1" becomes "experts.#.w1".
  static bool replace_number(std::string& name, Index& number) {
    const std::size_t first = name.find_first_of("0123456789");
    if (first == name.npos) return false;
    // "w1" has a number, too: an expert's is all between two dots, or behind "expert_".
    for (std::size_t at = first; at != name.npos; at = name.find_first_of("0123456789", at)) {
      const std::size_t end = std::min(name.find_first_not_of("0123456789", at), name.size());
      const bool whole =
          (at == 0 || name[at - 1] == '.' || name[at - 1] == '_') && end < name.size() && name[end] == '.';
      if (whole && end - at < 9) {
        number = std::stol(name.substr(at, end - at));
        name.replace(at, end - at, "#");
        return true;
      }
      at = end;
    }
    return false;
  }

  /// PEFT's wrappers around one module, one for each parameter of it: "experts.base_layer".
  static Index remove_wrappers(std::string& name, std::string_view from) {
    constexpr std::string_view wrapper = ".base_layer";
    Index depth = 0;
    for (; from.ends_with(wrapper); ++depth) from.remove_suffix(wrapper.size());
    name = from;
    return depth;
  }

  /// Without what all of PEFT's begin with: as patterns name it.
  static std::string in_model(const std::string& module) { return module.substr(peft_prefix.size()); }

  Weight<Scalar> matrix(const std::string& name, Index rows, Index cols) {
    taken_.insert(name);
    const auto numbers = weights_.copy<Scalar>(name, {rows, cols});
    require_finite(name, numbers);
    return Eigen::Map<const Weight<Scalar>>(numbers.data(), rows, cols);
  }

  void require_finite(const std::string& name, const Vector<Scalar>& numbers) const {
    if (numbers.allFinite()) return;
    fail(to_string(file_.tensors.at(name)),
         " holds a number that is not finite: the file is damaged, or was saved by "
         "a run that diverged");
  }

  std::vector<Index> shape_of(const std::string& name) const {
    const Tensor tensor = file_.tensors.at(name);
    if (tensor.shape.size() != 2 || tensor.shape[0] == 0) {
      fail(to_string(tensor), " has shape ", to_string(tensor.shape), ", expected a matrix with rows");
    }
    return tensor.shape;
  }

  Adapter<Scalar> adapter(const std::string& module, Index out, Index in) {
    const std::string a = module + std::string(a_end), b = module + std::string(b_end);
    const Index rank = shape_of(a)[0];
    return {matrix(a, rank, in), matrix(b, out, rank), file_.config.alpha(in_model(module), rank)};
  }

  void put(const std::string& module, Adapter<Scalar> from, Adapter<Scalar>& to) const {
    if (to.rank() > 0) {
      fail(utf8(file_.folder), ": \"", module, "\" is one more adapter of a matrix that has one in this file already");
    }
    to = std::move(from);
  }

  void take(const std::string& module, Index out, Index in, Adapter<Scalar>& to) {
    put(module, adapter(module, out, in), to);
  }

  void take_ffn(const std::string& module, Index d, Index ff, Index matrix, ExpertAdapters<Scalar>& to) {
    if (matrix == 2) return take(module, d, ff, to.down);
    if (matrix < 2) return take(module, ff, d, to[matrix]);
    ExpertAdapters<Scalar> both;
    split_gate_and_up(adapter(module, 2 * ff, d), false, both);
    put(module, std::move(both.gate), to.gate);
    put(module, std::move(both.up), to.up);
  }

  /// One of the parameters of the module of all experts, whose names do not tell which.
  void take_parameters(const std::string& module, Index depth, bool of_others) {
    if (depth > 1) return;
    const std::string outer = depth == 0 ? module : module.substr(0, module.rfind('.')), experts = in_model(outer);
    const auto two = sides(module);
    const Index a = two.first, b = two.second;  // by name: a lambda has them
    const Index in = inner(), ff = d_ff(of_others);
    const auto is_between = [&](Index one, Index other) {
      return (a == one && b == other) || (a == other && b == one);
    };
    if (is_gated(shape_.hidden)) {
      const auto take_one = [&](const char* name, Index matrix) {
        take_fused(module, experts + name, matrix, of_others);
      };
      if (is_between(2 * ff, in)) return take_one(".gate_up_proj", AdapterPlace::gate_and_up);
      if (is_between(in, ff)) return take_one(".down_proj", 2);
      fail(what(module), " is between ", a, " and ", b, " numbers, expected ", 2 * ff, " and ", in, " or ", in, " and ",
           ff);
    }
    const bool both = file_.tensors.contains(outer + ".base_layer" + std::string(a_end));
    const auto is_target = [&](const char* parameter) { return file_.config.is_target_parameter(experts + parameter); };
    if (depth == 1 || (!both && is_target(".up_proj"))) return take_fused(module, experts + ".up_proj", 1);
    if (both || is_target(".down_proj")) return take_fused(module, experts + ".down_proj", 2);
    fail(what(module), " is of up_proj or of down_proj, expected one of these in target_parameters");
  }

  /// How many numbers A reads, and B writes.
  std::pair<Index, Index> sides(const std::string& module) const {
    return {shape_of(module + std::string(a_end))[1], shape_of(module + std::string(b_end))[0]};
  }

  std::string what(const std::string& module) const { return utf8(file_.folder) + ": adapter \"" + module + "\""; }

  void take_fused(const std::string& module, const std::string& parameter, Index matrix_number,
                  bool of_others = false) {
    const Index n = of_others ? others_.count : shape_.num_experts + num_spare(matrix_number);
    const std::string a = module + std::string(a_end), b = module + std::string(b_end);
    const Index rows = shape_of(a)[0];
    if (rows % n != 0) {
      fail(what(module), " has ", rows, " rows in lora_A, expected a multiple of ", n, ", one for each expert");
    }
    const auto [one, other] = sides(module);
    const auto [out, in] = size_of(matrix_number, of_others);
    FusedAdapter<Scalar> fused{what(module), matrix(a, rows, one), matrix(b, other, rows), n};
    if (!fused.fits(out, in)) {
      fail(what(module), " is between ", one, " and ", other, " numbers, expected ", out, " and ", in);
    }
    fused_.push_back({std::move(fused), parameter, matrix_number, of_others});
  }

  /// How many further experts a parameter has, which compute nothing: LongCat's gate_up_proj.
  Index num_spare(Index matrix_number) const {
    return matrix_number == AdapterPlace::gate_and_up ? shape_.num_zero_experts : 0;
  }

  /// Of an expert's matrices, its numbers out and in.
  std::pair<Index, Index> size_of(Index matrix_number, bool of_others) const {
    const Index ff = d_ff(of_others);
    if (matrix_number == 2) return {inner(), ff};
    return {matrix_number == AdapterPlace::gate_and_up ? 2 * ff : ff, inner()};
  }

  /// Which side A is on, the shapes of one tell of all; where all are square, whoever wrote them.
  void give_fused() {
    std::optional<bool> turned;
    for (const Fused& fused : fused_) {
      if (fused.adapter.is_square()) continue;
      const bool its = fused.adapter.a.cols() == size_of(fused.matrix, fused.of_others).first;
      if (turned && *turned != its) {
        fail(fused.adapter.name, " is ", its ? "" : "not ", "turned, unlike another of this block");
      }
      turned = its;
    }
    if (!turned && !fused_.empty() && file_.config.has_old_sides()) {
      fail(fused_[0].adapter.name,
           " is square, and of a PEFT before 0.19.1, of which nothing tells whether lora_A is "
           "of inputs or of outputs: save it with a newer one, or say it to adopt_fused_adapters()");
    }
    for (const Fused& fused : fused_) give(fused, turned.value_or(architecture_.turned_adapters));
  }

  void give(const Fused& fused, bool turned) {
    const double alpha = file_.config.alpha(fused.parameter, fused.adapter.rank());
    const Index n = fused.adapter.num_experts - (fused.of_others ? 0 : num_spare(fused.matrix));
    for (Index e = 0; e < n; ++e) {
      auto& its = found_.experts[std::size_t(e + (fused.of_others ? shape_.num_experts : 0))];
      Adapter<Scalar> one = fused.adapter.of_expert(e, turned, alpha);
      if (fused.matrix != AdapterPlace::gate_and_up) {
        put(fused.parameter, std::move(one), its[fused.matrix]);
        continue;
      }
      ExpertAdapters<Scalar> both;
      split_gate_and_up(one, architecture_.interleaved, both);
      put(fused.parameter, std::move(both.gate), its.gate);
      put(fused.parameter, std::move(both.up), its.up);
    }
  }

  /// A weight that was trained in full, or what was saved with it.
  void read_whole(const std::string& name, const std::string& relative) {
    for (const auto& [biases, its] : {std::pair(architecture_.router_bias, in_base_.router_bias),
                                      {architecture_.selection_bias, in_base_.selection_bias}}) {
      const auto all = alternatives(biases);
      if (!relative.empty() && std::ranges::count(all, relative) > 0) return require_same(name, its);
    }
    for (const auto& [parameter, theirs] : whole_vectors(architecture_)) {
      if (std::ranges::count(alternatives(theirs), relative) == 0 && relative != parameter) continue;
      for (const auto& [same, its] : whole_vectors(in_base_)) {
        if (same == parameter) return read_vector(name, parameter, its);
      }
    }
    if (!relative.ends_with(weight_end)) return;
    const auto place = places_.find(relative.substr(0, relative.size() - weight_end.size()));
    if (place == places_.end()) return;
    if (place->second.part == AdapterPlace::router && !is_by_modality()) {
      found_.whole_router = matrix(name, num_outputs_, shape_.d_model);
    }
  }

  /// Of as many numbers as in the base, one after the other.
  void read_vector(const std::string& name, const std::string& parameter, std::string_view in_base) {
    if (!base_.contains(in_base)) return;
    const Tensor tensor = file_.tensors.at(name);
    const std::vector<Index> its = base_.shape(in_base);
    const Index size = its.back();
    const bool is_row = tensor.shape.size() == 2;  // as save_parameters() writes it
    const auto numbers = weights_.copy<Scalar>(name, is_row ? std::vector<Index>{1, size} : std::vector<Index>{size});
    require_finite(name, numbers);
    taken_.insert(name);
    found_.whole_vectors[parameter] = numbers;
  }

  /// Biases of a router do not learn beside adapters.
  void require_same(const std::string& name, std::string_view in_base) {
    if (!base_.contains(in_base)) return;
    const Tensor tensor = file_.tensors.at(name);
    require_shape(tensor, base_.shape(in_base));
    if (weights_.copy<Scalar>(name, tensor.shape) != base_.copy<Scalar>(in_base, tensor.shape)) {
      fail(to_string(tensor), " differs from the model's: a bias that was trained in full is not read");
    }
    taken_.insert(name);
  }

  const AdapterFile& file_;
  const WeightTensors weights_;
  const WeightTensors& base_;
  const std::vector<NameInBlock>& names_;
  const Architecture &in_base_, &architecture_;  // names of the model's files; of adapters
  const MoeShape& shape_;
  Index num_outputs_;
  OtherExperts others_;
  std::map<std::string, AdapterPlace> places_;
  std::set<std::string> taken_;
  std::vector<Fused> fused_;
  BlockAdapters<Scalar> found_;
};

}  // namespace moe::inline MOE_TARGET::io::detail
