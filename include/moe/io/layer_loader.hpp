/// @file  Puts layers together from tensors of every layout and type.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <filesystem>
#include <functional>
#include <iterator>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

#include "moe/core/check.hpp"
#include "moe/core/types.hpp"
#include "moe/experts/any_expert.hpp"
#include "moe/experts/any_experts.hpp"
#include "moe/experts/expert_list.hpp"
#include "moe/experts/ffn.hpp"
#include "moe/experts/gated_ffn_bank.hpp"
#include "moe/experts/joined_experts.hpp"
#include "moe/experts/zero_compute.hpp"
#include "moe/io/architectures.hpp"
#include "moe/io/config.hpp"
#include "moe/io/error.hpp"
#include "moe/io/load_layer.hpp"
#include "moe/io/model_files.hpp"
#include "moe/io/safetensors.hpp"
#include "moe/io/tensor.hpp"
#include "moe/io/weight_tensors.hpp"
#include "moe/layers/affine_output.hpp"
#include "moe/layers/any_layer.hpp"
#include "moe/layers/moe_layer.hpp"
#include "moe/layers/shared.hpp"
#include "moe/models/moe_shape.hpp"
#include "moe/routers/any_router.hpp"
#include "moe/routers/filters/capacity.hpp"
#include "moe/routers/linear_top_k.hpp"
#include "moe/routers/sparse_mixer.hpp"

namespace moe::inline MOE_TARGET::io {

namespace detail {

/// Builds the parts of one MoE block.
template <class Scalar>
class LayerLoader {
 protected:
  using Vector = Eigen::Matrix<Scalar, Eigen::Dynamic, 1>;

 public:
  /// @param experts  which of them, in ascending order; else all
  LayerLoader(const WeightTensors& tensors, const Config& config, const Architecture& architecture,
              const MoeShape& shape, const std::optional<std::vector<Index>>& experts = {})
      : tensors_(experts ? tensors.only(below(shape.num_experts, *experts)) : tensors),
        config_(config),
        names_(architecture),
        shape_(shape),
        num_zero_experts_(experts ? std::ssize(*experts) - tensors_.num_read() : shape.num_zero_experts) {
    if (experts) require_ascending(*experts, num_outputs(), "experts");
  }

  LayerParts<Scalar> load() const {
    return with_weight_type([&]<class W>(W) {
      auto assemble = assembly();  // first, for a router's complaints are the clearest
      return LayerParts<Scalar>{experts<W>(), std::move(assemble), shape_, std::string(names_.model_type), dtype()};
    });
  }

  /// Of the experts' weights; the first one's, and load() holds the others to it.
  std::string dtype() const { return is_mxfp4() ? mxfp4 : tensors_.at(first_expert_tensor()).dtype; }

 protected:
  /// f(W()), where the experts' weights are of type W.
  template <class F>
  auto with_weight_type(const F& f) const {
    const std::string type = dtype();
    if constexpr (std::is_same_v<Scalar, double>) {
      if (type == dtype_name<double>) return f(double());
      fail(to_string(tensors_.at(first_expert_tensor())), " has dtype ", type, ", expected F64 for a layer of double");
    } else {
      if (type == dtype_name<bfloat16> || type == mxfp4) return f(bfloat16());
      if (type == dtype_name<float16>) return f(float16());
      if (type == dtype_name<float>) return f(float());
      fail(to_string(tensors_.at(first_expert_tensor())), " has dtype ", type, ", expected F32, BF16 or F16",
           dtype_bits(type) > 0 && dtype_bits(type) <= 8 ? ": it is quantised, take the original weights" : "");
    }
  }

  /// All that stands around the experts, waiting for them.
  std::function<AnyLayer<Scalar>(AnyExperts<Scalar>)> assembly() const {
    const auto sparse = [router = router()](AnyExperts<Scalar> experts) {
      return MoeLayer(router, std::move(experts));
    };
    if (shape_.d_ff_shared > 0) {
      return [sparse, shared = any_shared(), gate = shared_gate()](AnyExperts<Scalar> experts) {
        return WithSharedExpert(sparse(std::move(experts)), shared, gate.transpose());
      };
    }
    if (!has_affine_output()) return sparse;
    return [sparse, scale = output_scale(), bias = output_bias()](AnyExperts<Scalar> experts) {
      return AffineOutput(sparse(std::move(experts)), scale, bias);
    };
  }

  bool has_affine_output() const { return !names_.output_bias.empty() || names_.output_scale != nullptr; }
  Scalar output_scale() const { return names_.output_scale ? Scalar(names_.output_scale(config_)) : Scalar(1); }
  Vector output_bias() const { return vector_if(!names_.output_bias.empty(), names_.output_bias, {d()}); }

  AnyRouter<Scalar> router() const {
    if (const auto* const mixer = std::get_if<SparseMixerOptions>(&shape_.router)) {
      return SparseMixer<Scalar>(router_weight(), *mixer);
    }
    if (names_.capacity == nullptr) return top_k();
    return WithCapacity(top_k(), names_.capacity(config_));
  }

  /// A copy in Scalar: routers decide in full precision, and are small.
  Weight<Scalar> router_weight() const {
    const Vector numbers = finite(names_.router, {num_outputs(), d()});
    return Eigen::Map<const Weight<Scalar>>(numbers.data(), num_outputs(), d());
  }

  LinearTopK<Scalar> top_k() const {
    return {
        router_weight(), std::get<TopKOptions>(shape_.router),
        vector_if(shape_.router_bias, names_.router_bias, {num_outputs()}),
        vector_if(shape_.selection_bias, names_.selection_bias,
                  names_.selection_bias_is_a_row ? std::vector<Index>{1, num_outputs()} : std::vector{num_outputs()})};
  }

  template <class W>
  std::optional<AnyExperts<Scalar>> experts() const {
    const bool compute = tensors_.num_read() > 0;
    if (num_zero_experts_ == 0) return compute ? std::optional(computing_experts<W>()) : std::nullopt;
    const ExpertList copies(std::vector<AnyExpert<Scalar>>(std::size_t(num_zero_experts_), CopyExpert<Scalar>{d()}));
    if (!compute) return copies;
    return JoinedExperts(computing_experts<W>(), copies);
  }

  template <class W>
  AnyExperts<Scalar> computing_experts() const {
    if (names_.layout == ExpertLayout::interleaved) return interleaved<W>();
    if (names_.layout == ExpertLayout::plain) return ExpertList(as_any(plain<W>()));
    return gated<W>();
  }

  template <class W>
  GatedFfnBank<W> gated() const {
    switch (names_.layout) {
      case ExpertLayout::separate:
        if (is_fused()) return fused<W>();
        return GatedFfnBank<W>{tensors_.separate<W>(names_.gate, ff(), d()), tensors_.separate<W>(names_.up, ff(), d()),
                               tensors_.separate<W>(names_.down, d(), ff())};
      case ExpertLayout::fused:
        return fused<W>();
      case ExpertLayout::transposed:
        return GatedFfnBank<W>{tensors_.transposed<W>(names_.fused_gate_up, 2 * ff(), d(), 0, 1, ff()),
                               tensors_.transposed<W>(names_.fused_gate_up, 2 * ff(), d(), ff(), 1, ff()),
                               tensors_.transposed<W>(names_.fused_down, d(), ff(), 0, 1, d())};
      case ExpertLayout::stacked:
        return GatedFfnBank<W>{tensors_.stacked<W>(names_.gate, ff(), d()), tensors_.stacked<W>(names_.up, ff(), d()),
                               tensors_.stacked_turned<W>(names_.down, d(), ff())};
      default:
        fail(names_.model_type, ": has no gated experts of this layout");
    }
  }

  template <class W>
  GatedFfnBank<W> fused() const {
    return {tensors_.fused<W>(names_.fused_gate_up, 2 * ff(), d(), 0, ff()),
            tensors_.fused<W>(names_.fused_gate_up, 2 * ff(), d(), ff(), ff()),
            tensors_.fused<W>(names_.fused_down, d(), ff(), 0, d())};
  }

  template <class W>
  GatedFfnBank<W, GptOssGlu> interleaved() const {
    const auto rows_of = [&](std::string_view name, Index all_rows, Index cols, Index first, Index step, Index rows) {
      return is_mxfp4() ? tensors_.expanded<W>(name, all_rows, cols, first, step, rows)
                        : tensors_.transposed<W>(name, all_rows, cols, first, step, rows);
    };
    const Matrix<Scalar> both = tensors_.columns<Scalar>(names_.up_bias, 2 * ff());
    GatedFfnBiases<Scalar> biases{.gate = both(Eigen::seqN(0, ff(), 2), every),
                                  .up = both(Eigen::seqN(1, ff(), 2), every),
                                  .down = tensors_.columns<Scalar>(names_.down_bias, d())};
    const GptOssGlu act{.limit = float(config_.number("swiglu_limit", 7))};
    return {rows_of(names_.fused_gate_up, 2 * ff(), d(), 0, 2, ff()),
            rows_of(names_.fused_gate_up, 2 * ff(), d(), 1, 2, ff()), rows_of(names_.fused_down, d(), ff(), 0, 1, d()),
            act, std::move(biases)};
  }

  /// Copied: few such models are left, and none is large.
  template <class W>
  std::vector<Ffn<W, Relu>> plain() const {
    std::vector<Ffn<W, Relu>> experts;
    for (Index i = 0; i < tensors_.num_read(); ++i) {
      const Index e = tensors_.expert(i);
      const auto matrix = [&](std::string_view pattern, Index rows, Index cols) {
        const Tensor tensor = tensors_.at(WeightTensors::numbered(pattern, e));
        return Weight<W>(Eigen::Map<const Weight<W>>(as<W>(tensor, {rows, cols}).data(), rows, cols));
      };
      const auto bias = [&](std::string_view pattern, Index size) {
        return pattern.empty() ? Vector() : tensors_.copy<Scalar>(WeightTensors::numbered(pattern, e), {size});
      };
      experts.push_back({.w_in = matrix(names_.up, ff(), d()),
                         .w_out = matrix(names_.down, d(), ff()),
                         .b_in = bias(names_.up_bias, ff()),
                         .b_out = bias(names_.down_bias, d())});
    }
    return experts;
  }

  static std::vector<Index> below(Index end, std::vector<Index> experts) {
    std::erase_if(experts, [&](Index e) { return e >= end; });
    return experts;
  }

  template <class E>
  static std::vector<AnyExpert<Scalar>> as_any(std::vector<E> experts) {
    return {std::make_move_iterator(experts.begin()), std::make_move_iterator(experts.end())};
  }

  template <class W>
  GatedFfnBank<W> shared() const {
    const std::string name(names_.shared), both = name + "input_linear.weight";
    const Index shared_ff = shape_.d_ff_shared;
    if (tensors_.contains(both)) {  // Granite
      return {tensors_.single<W>(both, 2 * shared_ff, d(), 0, shared_ff),
              tensors_.single<W>(both, 2 * shared_ff, d(), shared_ff, shared_ff),
              tensors_.single<W>(name + "output_linear.weight", d(), shared_ff, 0, d())};
    }
    return {tensors_.single<W>(name + "gate_proj.weight", shared_ff, d(), 0, shared_ff),
            tensors_.single<W>(name + "up_proj.weight", shared_ff, d(), 0, shared_ff),
            tensors_.single<W>(name + "down_proj.weight", d(), shared_ff, 0, d())};
  }

  AnyExperts<Scalar> any_shared() const {
    return with_weight_type([&]<class W>(W) { return AnyExperts<Scalar>(shared<W>()); });
  }

  Vector shared_gate() const { return vector_if(shape_.shared_gate, names_.shared_gate, {1, d()}); }

  Vector vector_if(bool has, std::string_view name, const std::vector<Index>& shape) const {
    return has ? finite(name, shape) : Vector();
  }

  /// The numbers of what chooses experts, or weighs or shifts their answers: with a NaN among them nothing would look
  /// wrong, but for an expert that is never chosen.
  Vector finite(std::string_view name, const std::vector<Index>& shape) const {
    const Vector numbers = tensors_.copy<Scalar>(name, shape);
    for (Index i = 0; i < numbers.size(); ++i) {
      if (std::isfinite(numbers(i))) continue;
      fail(to_string(tensors_.at(name)), " holds ", numbers(i), " at ", i, " of ", numbers.size(),
           ", expected finite numbers: the file is damaged, or was saved by a run that diverged");
    }
    return numbers;
  }

  Index d() const { return shape_.d_model; }
  Index ff() const { return shape_.d_ff; }
  Index num_outputs() const { return shape_.num_experts + shape_.num_zero_experts; }

  bool is_mxfp4() const {
    return names_.layout == ExpertLayout::interleaved &&
           tensors_.contains(std::string(names_.fused_gate_up) + "_blocks");
  }
  bool is_fused() const {
    return !tensors_.contains(WeightTensors::numbered(names_.gate, 0)) && tensors_.contains(names_.fused_gate_up);
  }

  std::string first_expert_tensor() const {
    switch (names_.layout) {
      case ExpertLayout::separate:
        return is_fused() ? std::string(names_.fused_gate_up) : WeightTensors::numbered(names_.gate, 0);
      case ExpertLayout::plain:
        return WeightTensors::numbered(names_.up, 0);
      case ExpertLayout::stacked:
        return std::string(names_.gate);
      default:
        return std::string(names_.fused_gate_up);
    }
  }

  static constexpr const char* mxfp4 = "MXFP4";

  WeightTensors tensors_;
  const Config& config_;
  const Architecture& names_;
  const MoeShape& shape_;
  Index num_zero_experts_;  // of those that are loaded
};

/// Does it hold tensors, and is called as `sparse` is, but for its number? "model.layers.0.mlp" of DeepSeek.
inline bool is_dense_layer(const Tensors& tensors, const std::string& block, const std::string& sparse) {
  const auto last_name = [](const std::string& name) { return name.substr(name.rfind('.') + 1); };
  return !block.empty() && last_name(block) == last_name(sparse) &&
         std::ranges::any_of(tensors.names(), [&](const auto& name) { return name.starts_with(block + "."); });
}

/// @throws Error naming the nearest block, if this is none: a dense layer, or a name that is spelt otherwise here.
inline void check_block(const ModelFiles& model, const std::string& block) {
  const std::string folder = utf8(model.folder());
  const std::vector<std::string>& blocks = model.moe_blocks();
  if (std::ranges::count(blocks, block) > 0) return;
  if (blocks.empty()) {
    fail(folder, ": no MoE block \"", block, "\", nor any: no tensor is called \"",
         experts_prefix(model.architecture()), "*\"");
  }
  const auto nearest =
      std::ranges::min_element(blocks, {}, [&](const auto& candidate) { return edit_distance(candidate, block); });
  const char* const is =
      is_dense_layer(model.tensors(), block, *nearest) ? ": this one is a dense layer, without experts" : "";
  fail(folder, ": no MoE block \"", block, "\" among ", blocks.size(), is, "; did you mean \"", *nearest, "\"?");
}

/// f(weights, config, architecture, shape) of the MoE block below `prefix`.
template <class F>
auto with_block(const ModelFiles& model, const std::string& prefix, const F& f) {
  const std::string block = prefix.substr(0, prefix.size() - (prefix.ends_with('.') ? 1 : 0));
  check_block(model, block);
  try {
    return f(WeightTensors(model.tensors(), block, model.shape().num_experts), model.config(), model.architecture(),
             model.shape());
  } catch (const std::invalid_argument& error) {  // e.g. groups that do not divide the experts
    fail(model.config().file(), ": ", error.what());
  } catch (const Error& error) {
    if (const std::string method = model.config().quantization(); !method.empty()) {
      fail("the model is quantised (quant_method is \"", method, "\" in ", model.config().file(),
           "), expected weights in F32, BF16 or F16: take the original ones, or expand them first; ", error.what());
    }
    throw;
  }
}

template <class Scalar, class BuiltAs>
LayerParts<Scalar> load_parts(const ModelFiles& model, const std::string& prefix,
                              const std::optional<std::vector<Index>>& experts) {
  return with_block(model, prefix, [&](const auto&... block) { return LayerLoader<Scalar>(block..., experts).load(); });
}

template <class Scalar, class BuiltAs>
LayerParts<Scalar> load_parts(const std::filesystem::path& folder, const std::string& prefix,
                              const std::optional<std::vector<Index>>& experts) {
  return load_parts<Scalar, BuiltAs>(ModelFiles(folder), prefix, experts);
}

template <class Scalar, class BuiltAs>
LoadedLayer<Scalar> load_layer(const ModelFiles& model, const std::string& prefix) {
  auto [experts, assemble, shape, model_type, dtype] = load_parts<Scalar, BuiltAs>(model, prefix, std::nullopt);
  return {assemble(*std::move(experts)), shape, std::move(model_type), std::move(dtype)};
}

template <class Scalar, class BuiltAs>
LoadedLayer<Scalar> load_layer(const std::filesystem::path& folder, const std::string& prefix) {
  return load_layer<Scalar, BuiltAs>(ModelFiles(folder), prefix);
}

}  // namespace detail

}  // namespace moe::inline MOE_TARGET::io
