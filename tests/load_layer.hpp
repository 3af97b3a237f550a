/// @file  load_parts and load_layer, compiled once for all tests, as MOE_COMPILED has them: they know every layout of
/// every weight type.
#pragma once

#include "moe/io/checkpoint.hpp"

namespace moe::io::detail {

#define MOE_COMPILED_FOR(Scalar)                                                                                   \
  extern template LayerParts<Scalar> load_parts<Scalar, Flags>(const Model&, const std::string&,                   \
                                                               const std::optional<std::vector<Index>>&);          \
  extern template LayerParts<Scalar> load_parts<Scalar, Flags>(const std::filesystem::path&, const std::string&,   \
                                                               const std::optional<std::vector<Index>>&);          \
  extern template LoadedLayer<Scalar> load_layer<Scalar, Flags>(const Model&, const std::string&);                 \
  extern template LoadedLayer<Scalar> load_layer<Scalar, Flags>(const std::filesystem::path&, const std::string&); \
  extern template AnyLayer<Scalar> load_ffn<Scalar, Flags>(const Model&, const std::string&);
MOE_COMPILED_FOR(float)
MOE_COMPILED_FOR(double)
#undef MOE_COMPILED_FOR

}  // namespace moe::io::detail
