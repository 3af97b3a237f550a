#include "load_trainable_layer.hpp"

#include "moe/train/io/checkpoint.hpp"

namespace moe::io {

template TrainableLayer<float> load_trainable_layer<float>(const Model&, const std::string&);
template TrainableLayer<float> load_lora_layer<float>(const Model&, const std::string&, const LoraLayerOptions&);
template TrainableLayer<float> load_lora_layer<float>(const Model&, const std::string&, const Adapters&);

}  // namespace moe::io

namespace moe::test {

TrainableLayer<float> load_trainable_layer(const std::filesystem::path& folder) {
  return io::load_trainable_layer<float>(folder, "");
}

TrainableLayer<float> load_reference_gradients(const std::filesystem::path& folder) {
  const io::Model gradients(io::Config::open(folder / "config.json"), io::Tensors::open(folder / "case.safetensors"));
  return io::detail::with_block(gradients, "grad", nullptr,
                                [](const auto& weights, const auto& config, io::Architecture architecture) {
                                  architecture.selection_bias = "";  // which has no gradient
                                  return io::detail::TrainableLayerLoader<float>(weights, config, architecture).load();
                                });
}

}  // namespace moe::test
