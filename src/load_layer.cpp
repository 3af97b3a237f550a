// What moe::io is compiled to, with banks_of_*.cpp and files.cpp: the loaders of layers. For callers that are compiled
// for a processor, under their names; behind choose_loaders.cpp, as a table of the name MOE_LOADERS.
#if !defined(MOE_LOADERS)
#define MOE_IO_COMPILED  // what opens files is files.cpp's
#endif

#include "banks.hpp"

namespace moe::io::detail {

MOE_BANKS(extern, float)
MOE_BANKS(extern, double)
MOE_BANKS(extern, bfloat16)
MOE_BANKS(extern, float16)
MOE_BANKS(extern, Quantized)

}  // namespace moe::io::detail

#if defined(MOE_LOADERS)

#include "loaders.hpp"

namespace moe::io::detail {

template <class Scalar>
constexpr LoadersOf<Scalar> loaders_of = {load_parts<Scalar, Flags>, load_parts<Scalar, Flags>,
                                          load_layer<Scalar, Flags>, load_layer<Scalar, Flags>,
                                          load_ffn<Scalar, Flags>};

extern "C" const Loaders MOE_LOADERS;
const Loaders MOE_LOADERS = {loaders_of<float>, loaders_of<double>};

}  // namespace moe::io::detail

#else

namespace moe::io::detail {

template LayerParts<float> load_parts<float, Flags>(const Model&, const std::string&,
                                                    const std::optional<std::vector<Index>>&);
template LayerParts<float> load_parts<float, Flags>(const std::filesystem::path&, const std::string&,
                                                    const std::optional<std::vector<Index>>&);
template LoadedLayer<float> load_layer<float, Flags>(const Model&, const std::string&);
template LoadedLayer<float> load_layer<float, Flags>(const std::filesystem::path&, const std::string&);
template AnyLayer<float> load_ffn<float, Flags>(const Model&, const std::string&);

template LayerParts<double> load_parts<double, Flags>(const Model&, const std::string&,
                                                      const std::optional<std::vector<Index>>&);
template LayerParts<double> load_parts<double, Flags>(const std::filesystem::path&, const std::string&,
                                                      const std::optional<std::vector<Index>>&);
template LoadedLayer<double> load_layer<double, Flags>(const Model&, const std::string&);
template LoadedLayer<double> load_layer<double, Flags>(const std::filesystem::path&, const std::string&);
template AnyLayer<double> load_ffn<double, Flags>(const Model&, const std::string&);

}  // namespace moe::io::detail

#endif
