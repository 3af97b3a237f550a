/// @file  load_parts<float>, compiled once for all tests: it knows every layout of every weight type.
#pragma once

#include "moe/io/checkpoint.hpp"

namespace moe::io {

extern template LayerParts<float> load_parts<float>(const ModelFiles&, const std::string&,
                                                    const std::optional<std::vector<Index>>&);

}  // namespace moe::io
