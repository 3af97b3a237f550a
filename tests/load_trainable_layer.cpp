#include "load_trainable_layer.hpp"

#include "moe/train/io/checkpoint.hpp"

namespace moe::test {

TrainableLayer<float> load_trainable_layer(const std::filesystem::path& folder) {
  return io::load_trainable_layer<float>(folder, "");
}

TrainableLayer<float> load_reference_gradients(const std::filesystem::path& folder) {
  return io::detail::with_block(
      folder, "grad", [](const auto& weights, const auto& config, const auto& architecture, MoeShape shape) {
        shape.selection_bias = false;  // which has no gradient
        return io::detail::TrainableLayerLoader<float>(weights, config, architecture, shape).load();
      });
}

}  // namespace moe::test
