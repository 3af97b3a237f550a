/// @file  Runs a layer in a file that knows nothing of how it was made.
#pragma once

#include "moe/layers/any_layer.hpp"

namespace moe::test {

/// y = layer(x), with a workspace for all calls of this thread.
Matrix<float> run(const AnyLayer<float>& layer, const Matrix<float>& x);

}  // namespace moe::test
