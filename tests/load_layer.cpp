#include "load_layer.hpp"

namespace moe::io {

template LayerParts<float> load_parts<float>(const ModelFiles&, const std::string&,
                                             const std::optional<std::vector<Index>>&);

}  // namespace moe::io
