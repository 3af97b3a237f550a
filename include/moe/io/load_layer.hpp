/// @file  From a model's files to a layer that runs: what there is to call. Include checkpoint.hpp.
#pragma once

#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <type_traits>
#include <vector>

#include "moe/core/types.hpp"
#include "moe/experts/any_experts.hpp"
#include "moe/io/built_with.hpp"
#include "moe/io/error.hpp"
#include "moe/layers/any_layer.hpp"
#include "moe/models/moe_shape.hpp"

namespace moe::inline MOE_TARGET::io {

class Model;  // model.hpp

/// A layer before it is put together: who holds its experts in another way puts it together with those.
template <class Scalar>
struct LayerParts {
  std::optional<AnyExperts<Scalar>> experts;  // those that were asked for, numbered from 0; nothing if none were
  std::function<AnyLayer<Scalar>(AnyExperts<Scalar>)> assemble;  // the layer, of a group that has all of its experts
  MoeShape shape;
  std::string model_type;  // of config.json
  std::string dtype;       // of the experts' weights: "F32", "BF16", "MXFP4", …; "mixed"
};

/// A layer, and what the files said of it.
template <class Scalar>
struct LoadedLayer {
  AnyLayer<Scalar> layer;
  MoeShape shape;
  std::string model_type;
  std::string dtype;
};

namespace detail {

template <class Scalar, class BuiltAs>
LayerParts<Scalar> load_parts(const Model& model, const std::string& prefix,
                              const std::optional<std::vector<Index>>& experts);
template <class Scalar, class BuiltAs>
LayerParts<Scalar> load_parts(const std::filesystem::path& folder, const std::string& prefix,
                              const std::optional<std::vector<Index>>& experts);
template <class Scalar, class BuiltAs>
LoadedLayer<Scalar> load_layer(const Model& model, const std::string& prefix);
template <class Scalar, class BuiltAs>
LoadedLayer<Scalar> load_layer(const std::filesystem::path& folder, const std::string& prefix);
template <class Scalar, class BuiltAs>
AnyLayer<Scalar> load_ffn(const Model& model, const std::string& prefix);

/// Where a model is: a Model, an ExpertStore, which is one, or whatever is a path.
template <class Its>
using Place = std::conditional_t<std::is_base_of_v<Model, Its>, Model, std::filesystem::path>;

}  // namespace detail

/// The parts of the MoE block below `prefix` of a model: of its folder, or of its Model, to open those of several
/// layers once.
/// Experts' weights, of 16 and 32 bits or coded in fewer, stay in the mapped files, which stay mapped as long as the
/// parts live. Only those of 16 and 32 bits that are stored transposed (Llama 4, gpt-oss, DBRX's down), or that are of
/// several types, are turned or converted once into memory of their own, and codes that a format packs along columns
/// (GPTQ, AWQ) are put in order there, in as many bytes. The router is copied as Scalar.
/// @param prefix   e.g. "model.layers.3.mlp", with or without a last dot, or "" if names begin at the block
/// @param experts  which of the layer's, zero-compute ones included, in ascending order: nothing is read or held of the
///                 others; nullopt: all
/// @throws Error naming the file, the tensor, and both numbers, if anything is missing or does not fit; or if there are
///         no such experts.
template <class Scalar = float, class Its>
LayerParts<Scalar> load_parts(const Its& model, const std::string& prefix,
                              const std::optional<std::vector<Index>>& experts = {}) {
  const detail::Place<Its>& place = model;
  return detail::load_parts<Scalar, detail::Flags>(place, prefix, experts);
}

/// The whole layer, ready to run; parts and errors as load_parts(). Switch counts its capacity per sequence: tell it
/// Workspace::side.sequence_length.
template <class Scalar = float, class Its>
LoadedLayer<Scalar> load_layer(const Its& model, const std::string& prefix) {
  const detail::Place<Its>& place = model;
  return detail::load_layer<Scalar, detail::Flags>(place, prefix);
}

}  // namespace moe::inline MOE_TARGET::io
