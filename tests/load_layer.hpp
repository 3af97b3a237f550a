/// @file  load_parts<float> and load_layer<float>, compiled once for all tests: they know every layout of every weight
/// type.
#pragma once

#include "moe/io/checkpoint.hpp"

namespace moe::io::detail {

extern template LayerParts<float> load_parts<float, Flags>(const ModelFiles&, const std::string&,
                                                           const std::optional<std::vector<Index>>&);
extern template LayerParts<float> load_parts<float, Flags>(const std::filesystem::path&, const std::string&,
                                                           const std::optional<std::vector<Index>>&);
extern template LoadedLayer<float> load_layer<float, Flags>(const ModelFiles&, const std::string&);
extern template LoadedLayer<float> load_layer<float, Flags>(const std::filesystem::path&, const std::string&);

}  // namespace moe::io::detail
