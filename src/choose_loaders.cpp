// moe::io for callers that are compiled for no processor in particular: loads layers whose kernels are those of the
// best processor that this machine has.
#include <stdexcept>

#include "loaders.hpp"
#include "processors.hpp"

namespace moe::io::detail {

using Init = void (*)(int, char**, char**);

#define CHOICE(name)                                                                   \
  extern "C" const Loaders moe_io_loaders_##name;                                      \
  extern "C" const Init __start_init_of_moe_io_loaders_##name[] __attribute__((weak)); \
  extern "C" const Init __stop_init_of_moe_io_loaders_##name[] __attribute__((weak));
MOE_CHOICES
#undef CHOICE

namespace {

const Loaders& choose() {
#define CHOICE(name)                                                                                        \
  if (moe_processors::is_chosen(#name)) {                                                                   \
    moe_processors::construct(__start_init_of_moe_io_loaders_##name, __stop_init_of_moe_io_loaders_##name); \
    return moe_io_loaders_##name;                                                                           \
  }
  MOE_CHOICES
#undef CHOICE
  throw std::runtime_error("moe::io: MOE_PROCESSOR names no processor that this is and moe::io is compiled for");
}

const Loaders& chosen() {
  static const Loaders& loaders = choose();
  return loaders;
}

}  // namespace

template <>
LayerParts<float> load_parts<float, Flags>(const Model& model, const std::string& prefix, const Experts& experts) {
  return chosen().of_float.parts_of_model(model, prefix, experts);
}
template <>
LayerParts<double> load_parts<double, Flags>(const Model& model, const std::string& prefix, const Experts& experts) {
  return chosen().of_double.parts_of_model(model, prefix, experts);
}
template <>
LayerParts<float> load_parts<float, Flags>(const std::filesystem::path& folder, const std::string& prefix,
                                           const Experts& experts) {
  return chosen().of_float.parts_of_folder(folder, prefix, experts);
}
template <>
LayerParts<double> load_parts<double, Flags>(const std::filesystem::path& folder, const std::string& prefix,
                                             const Experts& experts) {
  return chosen().of_double.parts_of_folder(folder, prefix, experts);
}
template <>
LoadedLayer<float> load_layer<float, Flags>(const Model& model, const std::string& prefix) {
  return chosen().of_float.layer_of_model(model, prefix);
}
template <>
LoadedLayer<double> load_layer<double, Flags>(const Model& model, const std::string& prefix) {
  return chosen().of_double.layer_of_model(model, prefix);
}
template <>
LoadedLayer<float> load_layer<float, Flags>(const std::filesystem::path& folder, const std::string& prefix) {
  return chosen().of_float.layer_of_folder(folder, prefix);
}
template <>
LoadedLayer<double> load_layer<double, Flags>(const std::filesystem::path& folder, const std::string& prefix) {
  return chosen().of_double.layer_of_folder(folder, prefix);
}

template <>
AnyLayer<float> load_ffn<float, Flags>(const Model& model, const std::string& prefix) {
  return chosen().of_float.ffn_of_model(model, prefix);
}
template <>
AnyLayer<double> load_ffn<double, Flags>(const Model& model, const std::string& prefix) {
  return chosen().of_double.ffn_of_model(model, prefix);
}

}  // namespace moe::io::detail
