/// @file  What loads layers of floats that learn, compiled once for all tests: every kind of layer is much code.
#pragma once

#include <string>

#include "load_layer.hpp"
#include "moe/train/io/checkpoint.hpp"

namespace moe::io {

extern template TrainableLayer<float> load_trainable_layer<float>(const Model&, const std::string&);
extern template TrainableLayer<float> load_lora_layer<float>(const Model&, const std::string&, const LoraLayerOptions&);
extern template TrainableLayer<float> load_lora_layer<float>(const Model&, const std::string&, const Adapters&);

}  // namespace moe::io
