// The loaders of layers as compiled for one processor, for callers that are compiled for none in particular.
#pragma once

#include "moe/io/load_layer.hpp"

namespace moe::io::detail {

using Experts = std::optional<std::vector<Index>>;

template <class Scalar>
struct LoadersOf {
  LayerParts<Scalar> (*parts_of_model)(const Model&, const std::string&, const Experts&);
  LayerParts<Scalar> (*parts_of_folder)(const std::filesystem::path&, const std::string&, const Experts&);
  LoadedLayer<Scalar> (*layer_of_model)(const Model&, const std::string&);
  LoadedLayer<Scalar> (*layer_of_folder)(const std::filesystem::path&, const std::string&);
  AnyLayer<Scalar> (*ffn_of_model)(const Model&, const std::string&);
};

struct Loaders {
  LoadersOf<float> of_float;
  LoadersOf<double> of_double;
};

}  // namespace moe::io::detail
