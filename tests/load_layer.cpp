#include "load_layer.hpp"

namespace moe::io {

template LoadedLayer<float> load_layer<float>(const std::filesystem::path&, const std::string&,
                                              const ExpertsAs<float>&);

}  // namespace moe::io
