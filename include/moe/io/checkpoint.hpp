/// @file  From a model's files to a layer that runs.
#pragma once

#include <algorithm>
#include <cstddef>
#include <filesystem>
#include <memory>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "moe/any_layer.hpp"
#include "moe/experts/gated_ffn_bank.hpp"
#include "moe/io/architectures.hpp"
#include "moe/io/config.hpp"
#include "moe/io/error.hpp"
#include "moe/io/safetensors.hpp"
#include "moe/moe_layer.hpp"
#include "moe/presets.hpp"
#include "moe/routers/linear_top_k.hpp"
#include "moe/shared.hpp"
#include "moe/types.hpp"
#include "moe/weight_stack.hpp"

namespace moe::io {

namespace detail {

/// Keeps several files mapped as one.
using Owners = std::vector<std::shared_ptr<const void>>;

/// Builds the parts of one MoE block from the tensors below a prefix.
template <class Scalar>
class LayerLoader {
  using Vector = Eigen::Matrix<Scalar, Eigen::Dynamic, 1>;

 public:
  /// @param block  "model.layers.3.mlp", or "" if names begin at the block
  LayerLoader(const Tensors& tensors, const std::string& block, const Architecture& architecture, const MoeShape& shape)
      : tensors_(tensors), prefix_(block.empty() ? "" : block + '.'), names_(architecture), shape_(shape) {}

  AnyLayer<Scalar> load() const {
    const std::string type = dtype();
    if constexpr (std::is_same_v<Scalar, double>) {
      return load_as<double>();
    } else {
      if (type == dtype_name<bfloat16>) return load_as<bfloat16>();
      if (type == dtype_name<float16>) return load_as<float16>();
      if (type == dtype_name<float>) return load_as<float>();
      fail(to_string(at(first_expert_tensor())), " has dtype ", type, ", expected F32, BF16 or F16");
    }
  }

  /// Of the experts' weights; the first one's, and load() holds the others to it.
  std::string dtype() const { return at(first_expert_tensor()).dtype; }

 private:
  template <class W>
  AnyLayer<Scalar> load_as() const {
    LinearTopK<Scalar> its_router = router();  // first, for its complaints are the clearest
    MoeLayer layer(std::move(its_router), experts<W>());
    if (shape_.d_ff_shared == 0) return layer;
    return WithSharedExpert(std::move(layer), shared<W>(), shared_gate().transpose());
  }

  /// A copy in Scalar: routers decide in full precision, and are small.
  LinearTopK<Scalar> router() const {
    const Index experts = shape_.num_experts, d = shape_.d_model;
    const Vector weight = copy(names_.router, {experts, d});
    return {Eigen::Map<const Weight<Scalar>>(weight.data(), experts, d),
            *shape_.router,
            {},
            shape_.selection_bias ? copy(names_.selection_bias, {experts}) : Vector()};
  }

  template <class W>
  GatedFfnBank<W> experts() const {
    const Index d = shape_.d_model, ff = shape_.d_ff;
    if (names_.layout == ExpertLayout::transposed) {
      return {transposed<W>(fused_gate_up, 2 * ff, d, 0, ff), transposed<W>(fused_gate_up, 2 * ff, d, ff, ff),
              transposed<W>(fused_down, d, ff, 0, d)};
    }
    if (is_fused()) {
      return {fused<W>(fused_gate_up, 2 * ff, d, 0, ff), fused<W>(fused_gate_up, 2 * ff, d, ff, ff),
              fused<W>(fused_down, d, ff, 0, d)};
    }
    return {separate<W>(names_.gate, ff, d), separate<W>(names_.up, ff, d), separate<W>(names_.down, d, ff)};
  }

  template <class W>
  GatedFfnBank<W> shared() const {
    const std::string name(names_.shared);
    const Index d = shape_.d_model, ff = shape_.d_ff_shared;
    return {single<W>(name + "gate_proj.weight", ff, d), single<W>(name + "up_proj.weight", ff, d),
            single<W>(name + "down_proj.weight", d, ff)};
  }

  Vector shared_gate() const { return shape_.shared_gate ? copy(names_.shared_gate, {1, shape_.d_model}) : Vector(); }

  /// One (rows × cols) tensor an expert, in place.
  template <class W>
  WeightStack<W> separate(std::string_view pattern, Index rows, Index cols) const {
    std::vector<const W*> experts;
    auto owners = std::make_shared<Owners>();
    for (Index e = 0; e < shape_.num_experts; ++e) {
      const Tensor tensor = at(numbered(pattern, e));
      experts.push_back(as<W>(tensor, {rows, cols}).data());
      owners->push_back(tensor.owner);
    }
    return {std::move(experts), rows, cols, cols, std::move(owners)};
  }

  template <class W>
  WeightStack<W> single(const std::string& name, Index rows, Index cols) const {
    const Tensor tensor = at(name);
    return {{as<W>(tensor, {rows, cols}).data()}, rows, cols, cols, tensor.owner};
  }

  /// Rows [first, first + rows) of each expert's (all_rows × cols), in place.
  template <class W>
  WeightStack<W> fused(const char* name, Index all_rows, Index cols, Index first, Index rows) const {
    const Tensor tensor = at(name);
    const W* data = as<W>(tensor, {shape_.num_experts, all_rows, cols}).data();
    std::vector<const W*> experts;
    for (Index e = 0; e < shape_.num_experts; ++e) experts.push_back(data + (e * all_rows + first) * cols);
    return {std::move(experts), rows, cols, cols, tensor.owner};
  }

  /// The same of tensors stored (cols × all_rows): turned once, into memory of their own.
  template <class W>
  WeightStack<W> transposed(const char* name, Index all_rows, Index cols, Index first, Index rows) const {
    const Tensor tensor = at(name);
    const W* data = as<W>(tensor, {shape_.num_experts, cols, all_rows}).data();
    WeightStack<W> stack(shape_.num_experts, rows, cols);
    for (Index e = 0; e < shape_.num_experts; ++e) {
      const WeightMap<W> stored(data + e * cols * all_rows, cols, all_rows, Eigen::OuterStride<>(all_rows));
      stack.owned(e) = stored.middleCols(first, rows).transpose();
    }
    return stack;
  }

  /// The numbers of a small tensor of any floating type.
  Vector copy(std::string_view name, const std::vector<Index>& shape) const {
    const Tensor tensor = at(name);
    const auto convert = [&]<class T>(T) -> Vector {
      const auto from = as<T>(tensor, shape);
      Vector to(Index(from.size()));
      for (std::size_t i = 0; i < from.size(); ++i) to[Index(i)] = static_cast<Scalar>(from[i]);
      return to;
    };
    if (tensor.dtype == dtype_name<double>) return convert(double{});
    if (tensor.dtype == dtype_name<bfloat16>) return convert(bfloat16{});
    if (tensor.dtype == dtype_name<float16>) return convert(float16{});
    return convert(float{});
  }

  bool is_fused() const {
    return !tensors_.contains(prefix_ + numbered(names_.gate, 0)) && tensors_.contains(prefix_ + fused_gate_up);
  }

  std::string first_expert_tensor() const {
    return names_.layout == ExpertLayout::transposed || is_fused() ? fused_gate_up : numbered(names_.gate, 0);
  }

  static std::string numbered(std::string_view pattern, Index expert) {
    std::string name(pattern);
    return name.replace(name.find('#'), 1, std::to_string(expert));
  }

  Tensor at(std::string_view name) const { return tensors_.at(prefix_ + std::string(name)); }

  static constexpr const char* fused_gate_up = "experts.gate_up_proj";
  static constexpr const char* fused_down = "experts.down_proj";

  const Tensors& tensors_;
  std::string prefix_;
  const Architecture& names_;
  const MoeShape& shape_;
};

/// What stands before ".experts." in names, each once.
inline std::vector<std::string> blocks_in(const Tensors& tensors) {
  std::vector<std::string> blocks;
  for (const std::string& name : tensors.names()) {  // in alphabetical order: those of a block side by side
    const std::size_t end = ("." + name).find(".experts.");
    if (end == std::string::npos) continue;
    std::string block = name.substr(0, end == 0 ? 0 : end - 1);
    if (blocks.empty() || blocks.back() != block) blocks.push_back(std::move(block));
  }
  return blocks;
}

/// @throws Error naming the nearest block, if this is none: a dense layer, or a name that is spelt otherwise here.
inline void check_block(const Tensors& tensors, const std::string& block, const std::string& folder) {
  const std::vector<std::string> blocks = blocks_in(tensors);
  if (std::ranges::count(blocks, block) > 0) return;
  if (blocks.empty()) fail(folder, ": no MoE block \"", block, "\", nor any: no tensor is called \"experts.*\"");
  const auto nearest =
      std::ranges::min_element(blocks, {}, [&](const auto& candidate) { return edit_distance(candidate, block); });
  fail(folder, ": no MoE block \"", block, "\" among ", blocks.size(), "; did you mean \"", *nearest, "\"?");
}

}  // namespace detail

/// A layer, and what the files said of it.
template <class Scalar>
struct LoadedLayer {
  AnyLayer<Scalar> layer;
  MoeShape shape;
  std::string model_type;  // of config.json
  std::string dtype;       // of the experts' weights: "F32", "BF16", …
};

/// The MoE block below `prefix` of a model in a folder (config.json beside *.safetensors): ready to run.
/// Experts' weights stay in the mapped files, which stay mapped as long as the layer lives; only transposed ones, of
/// Llama 4, are turned once into memory of their own. The router is copied as Scalar.
/// @param prefix  e.g. "model.layers.3.mlp", with or without a last dot, or "" if names begin at the block
/// @throws Error naming the file, the tensor, and both numbers, if anything is missing or does not fit.
template <class Scalar = float>
LoadedLayer<Scalar> load_layer(const std::filesystem::path& folder, const std::string& prefix) {
  const Config config = Config::open(folder / "config.json");
  const Architecture& architecture = architecture_of(config);
  const MoeShape shape = moe_shape(config);
  const Tensors tensors = Tensors::open(folder);
  const std::string block = prefix.substr(0, prefix.size() - (prefix.ends_with('.') ? 1 : 0));
  detail::check_block(tensors, block, folder.string());
  try {
    const detail::LayerLoader<Scalar> loader(tensors, block, architecture, shape);
    return {loader.load(), shape, std::string(architecture.model_type), loader.dtype()};
  } catch (const std::invalid_argument& error) {  // e.g. groups that do not divide the experts
    fail(config.file(), ": ", error.what());
  }
}

}  // namespace moe::io
