/// @file  load_layer<float>, compiled once for all tests: it knows every layout of every weight type.
#pragma once

#include "moe/io/checkpoint.hpp"

namespace moe::io {

extern template LoadedLayer<float> load_layer<float>(const std::filesystem::path&, const std::string&,
                                                     const ExpertsAs<float>&);

}  // namespace moe::io
