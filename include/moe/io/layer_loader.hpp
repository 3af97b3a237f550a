/// @file  Puts layers together from tensors of every layout and type.
#pragma once

#include <cstddef>
#include <filesystem>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "moe/core/types.hpp"
#include "moe/experts/any_experts.hpp"
#include "moe/experts/ffn_bank.hpp"
#include "moe/experts/projection.hpp"
#include "moe/io/architecture.hpp"
#include "moe/io/around_experts.hpp"
#include "moe/io/block_reader.hpp"
#include "moe/io/built_with.hpp"
#include "moe/io/config.hpp"
#include "moe/io/error.hpp"
#include "moe/io/expert_tensors.hpp"
#include "moe/io/experts_loader.hpp"
#include "moe/io/lending.hpp"
#include "moe/io/load_layer.hpp"
#include "moe/io/model.hpp"
#include "moe/io/tensor.hpp"
#include "moe/io/weight_tensors.hpp"
#include "moe/layers/any_layer.hpp"
#include "moe/layers/dense.hpp"
#include "moe/models/moe_shape.hpp"
#include "moe/routers/any_router.hpp"

namespace moe::inline MOE_TARGET::io {

namespace detail {

/// A bank as layers that serve hold it: all kernels of W and Act, of which a library compiles some types at a time.
template <class W, class Act, class BuiltAs>
AnyExperts<ActivationScalar<W>> served(FfnBank<W, Act> bank, const Lending& lending, ExpertsOf of) {
  if (of == ExpertsOf::shared || !lending.is_on()) return lending.resident(std::move(bank));
  return lending.leased(std::move(bank), of);
}

/// Layers that serve are made of parts as they are read. How to make others, that learn, is said in
/// train/io/checkpoint.hpp.
template <class Scalar>
struct ToServe {
  using Router = AnyRouter<Scalar>;
  using Experts = AnyExperts<Scalar>;
  static constexpr bool widens = false;  // all weights to Scalar

  Lending lending{};

  template <class R>
  Router router(R router) const {
    return router;
  }
  template <class W, class Act>
  Experts experts(FfnBank<W, Act> bank, ExpertsOf of) const {
    return served<W, Act, Flags>(std::move(bank), lending, of);
  }
  template <class W>
  auto projection(Projection<W> projection, bool /*goes_in*/) const {
    return lending.resident(std::move(projection));
  }
  /// A vector, whose parameter is called so, that is no router's.
  Vector<Scalar> vector(const char* /*parameter*/, Vector<Scalar> numbers) const { return numbers; }
};

/// Builds the parts of one MoE block.
template <class Scalar>
class LayerLoader {
 public:
  /// @param experts  which of them, in ascending order; else all
  LayerLoader(const WeightTensors& tensors, const Config& config, const Architecture& architecture,
              const std::optional<std::vector<Index>>& experts = {})
      : block_(tensors, config, architecture, experts) {}

  /// @throws Error if a tensor or a setting of the block is left over.
  LayerParts<Scalar> load() const {
    if (block_.has_experts()) {  // complaints of a type come first
      block_.with_weight_type<Scalar>(block_.type_of_experts(), block_.first_expert(), [](auto) {});
    }
    const ToServe<Scalar> make{lending()};
    auto assemble = AroundLoader<Scalar>(block_).load(make);  // then those of a router
    LayerParts<Scalar> parts{ExpertsLoader<Scalar>(block_).load(make), std::move(assemble), block_.shape,
                             std::string(block_.config.text("model_type")), block_.type_of_experts().name};
    if (block_.has_experts()) block_.require_all_read();
    return parts;
  }

  /// The FFN of this name below the block, with what its tensors say of its width and biases.
  AnyLayer<Scalar> dense_ffn(const std::string& name) const {
    const std::string prefix = name + '.';
    const WeightTensors& tensors = block_.tensors;
    const HiddenActivation& hidden = block_.shape.hidden_shared;
    const Names names = find_names(tensors, ffn_spellings, prefix, is_gated(hidden));
    const Tensor down = tensors.at(names.down);
    if (down.shape.size() != 2) fail(to_string(down), " has shape ", to_string(down.shape), ", expected a matrix");
    const bool biased = tensors.contains(bias_name(names.down));
    return DenseLayer(ExpertsLoader<Scalar>(block_).any_ffn(ToServe<Scalar>(), prefix, down.shape[1], hidden, biased));
  }

 protected:
  Lending lending() const { return {&block_.tensors, block_.shape.num_experts}; }

  const BlockReader block_;
};

/// f(weights, config, architecture) of the MoE block below `prefix`.
/// @param lender  who lends its experts; null: they are read
template <class F>
auto with_block(const Model& model, const std::string& prefix, const std::shared_ptr<ExpertLender>& lender,
                const F& f) {
  const std::string block = block_name(model, prefix);
  check_block(model, block);
  try {
    const auto weights = model.weights(block, lender.get());
    return f(WeightTensors(*weights, block, model.shape(block).num_experts).lent_by(lender), model.config(block),
             model.architecture(block));
  } catch (const std::invalid_argument& error) {  // e.g. groups that do not divide the experts
    fail(model.config(block).file(), ": ", error.what());
  }
}

template <class Scalar, class BuiltAs>
LayerParts<Scalar> load_parts(const Model& model, const std::string& prefix,
                              const std::optional<std::vector<Index>>& experts) {
  return with_block(model, prefix, model.lender(),
                    [&](const auto&... block) { return LayerLoader<Scalar>(block..., experts).load(); });
}

template <class Scalar, class BuiltAs>
LayerParts<Scalar> load_parts(const std::filesystem::path& folder, const std::string& prefix,
                              const std::optional<std::vector<Index>>& experts) {
  return load_parts<Scalar, BuiltAs>(Model(folder), prefix, experts);
}

template <class Scalar, class BuiltAs>
LoadedLayer<Scalar> load_layer(const Model& model, const std::string& prefix) {
  auto [experts, assemble, shape, model_type, dtype] = load_parts<Scalar, BuiltAs>(model, prefix, std::nullopt);
  return {assemble(*std::move(experts)), shape, std::move(model_type), std::move(dtype)};
}

template <class Scalar, class BuiltAs>
LoadedLayer<Scalar> load_layer(const std::filesystem::path& folder, const std::string& prefix) {
  return load_layer<Scalar, BuiltAs>(Model(folder), prefix);
}

template <class Scalar, class BuiltAs>
AnyLayer<Scalar> load_ffn(const Model& model, const std::string& prefix) {
  const std::string block = block_name(model, prefix);
  const std::size_t dot = block.rfind('.');
  const auto weights = model.weights(block);
  const WeightTensors beside(*weights, dot == block.npos ? "" : block.substr(0, dot), 1);
  try {
    return LayerLoader<Scalar>(beside, model.config(block), model.architecture(block))
        .dense_ffn(dot == block.npos ? block : block.substr(dot + 1));
  } catch (const std::invalid_argument& error) {
    fail(model.config(block).file(), ": ", error.what());
  }
}

}  // namespace detail

}  // namespace moe::inline MOE_TARGET::io
