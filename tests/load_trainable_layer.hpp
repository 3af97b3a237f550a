/// @file  load_trainable_layer<float>, compiled once for all tests.
#pragma once

#include <filesystem>

#include "moe/train/trainable_layer.hpp"

namespace moe::test {

TrainableLayer<float> load_trainable_layer(const std::filesystem::path& folder);

/// A layer whose parameters are the gradients of a reference: the tensors "grad.…", in the layout of the weights.
TrainableLayer<float> load_reference_gradients(const std::filesystem::path& folder);

}  // namespace moe::test
