#include "load_layer.hpp"

namespace moe::io::detail {

template LayerParts<float> load_parts<float, Flags>(const ModelFiles&, const std::string&,
                                                    const std::optional<std::vector<Index>>&);
template LayerParts<float> load_parts<float, Flags>(const std::filesystem::path&, const std::string&,
                                                    const std::optional<std::vector<Index>>&);
template LoadedLayer<float> load_layer<float, Flags>(const ModelFiles&, const std::string&);
template LoadedLayer<float> load_layer<float, Flags>(const std::filesystem::path&, const std::string&);

}  // namespace moe::io::detail
