// What moe::io is compiled to: the loaders of layers.
#include "moe/io/layer_loader.hpp"

namespace moe::io::detail {

template LayerParts<float> load_parts<float, Flags>(const ModelFiles&, const std::string&,
                                                    const std::optional<std::vector<Index>>&);
template LayerParts<float> load_parts<float, Flags>(const std::filesystem::path&, const std::string&,
                                                    const std::optional<std::vector<Index>>&);
template LoadedLayer<float> load_layer<float, Flags>(const ModelFiles&, const std::string&);
template LoadedLayer<float> load_layer<float, Flags>(const std::filesystem::path&, const std::string&);

template LayerParts<double> load_parts<double, Flags>(const ModelFiles&, const std::string&,
                                                      const std::optional<std::vector<Index>>&);
template LayerParts<double> load_parts<double, Flags>(const std::filesystem::path&, const std::string&,
                                                      const std::optional<std::vector<Index>>&);
template LoadedLayer<double> load_layer<double, Flags>(const ModelFiles&, const std::string&);
template LoadedLayer<double> load_layer<double, Flags>(const std::filesystem::path&, const std::string&);

}  // namespace moe::io::detail
